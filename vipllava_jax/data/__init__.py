"""Reads the rows of data sets and makes batches of them, for training and evaluation."""
