"""Asks an engine about many things, of which it holds a few hundred at a time."""
