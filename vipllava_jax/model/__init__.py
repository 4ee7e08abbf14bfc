"""The model: Flax Linen modules and pure functions over a plain dict of params."""
