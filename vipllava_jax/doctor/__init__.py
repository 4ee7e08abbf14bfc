"""Checks that a computer can run the model: software, devices, storage, and the way to other hosts."""
