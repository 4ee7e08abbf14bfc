"""Beam search: the beams of each row, their candidates, and the search over them."""
