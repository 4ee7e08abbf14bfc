"""Serves a model over HTTP, as OpenAI's API does."""
