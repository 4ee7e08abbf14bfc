"""A small world of our own, and the model that was trained on it and comes with the package."""
