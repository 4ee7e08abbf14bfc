"""Between PyTorch checkpoints and our own folders: the only place that knows PyTorch, and without it."""
