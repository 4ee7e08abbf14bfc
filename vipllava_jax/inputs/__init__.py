"""Converts prompts and pictures to a model's input arrays, and ids to text; nothing here imports jax."""
