"""How much of a GPU's memory jax takes, which it asks for when it starts."""

import os


def reserve(shared: bool = False) -> None:
    """Before jax starts: most of a GPU's memory for it, at once or, if it shares the GPU, as it is needed."""
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.95')  # jax's own is 0.75
    if shared:
        os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
