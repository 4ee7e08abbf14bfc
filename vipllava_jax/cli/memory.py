"""Sets the share of GPU memory that jax allocates, which it reads when it starts."""

import os

from vipllava_jax.device_kinds import FRACTION, RESERVED


def reserve(shared: bool = False) -> None:
    """Lets jax use 95 % of GPU memory; if it is `shared` with another library, without preallocating it."""
    os.environ.setdefault(FRACTION, str(RESERVED))  # jax's default is 0.75
    if shared:
        os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
