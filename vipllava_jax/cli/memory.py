"""Sets the share of GPU memory that jax allocates, which it reads when it starts."""

import os


def reserve(shared: bool = False) -> None:
    """Lets jax use 95 % of GPU memory; if it is `shared` with another library, without preallocating it."""
    os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.95')  # jax's default is 0.75
    if shared:
        os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
