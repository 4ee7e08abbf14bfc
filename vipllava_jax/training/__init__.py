"""Training: rows of conversations to a better model."""
