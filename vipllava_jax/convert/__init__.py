"""Converts between PyTorch's checkpoints and our format, without PyTorch."""
