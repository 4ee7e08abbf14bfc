"""Training: rows of data to batches, batches to better weights."""
