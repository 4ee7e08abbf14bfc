"""Sets of ids, one for each row, padded to few shapes so that lists of other lengths compile nothing."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from vipllava_jax.inputs.padding import pad_ids

NO_ID = 2**31 - 1  # beyond every vocabulary


def id_set(ids: ArrayLike, B: int) -> Array:
    """The same ids for B rows, BW int32; W is a power of two, and NO_ID fills the unused columns."""
    unique = np.unique(np.asarray(ids, np.int32))
    return jnp.asarray(pad_ids([unique] * B, power_of_two(len(unique), 8), NO_ID))


def contains(ids: Array, V: int) -> Array:
    """Whether each token is in the set of its row, BW -> BV."""
    B = len(ids)
    return jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], ids].set(True, mode='drop')


def power_of_two(n: int, smallest: int) -> int:
    """The smallest power of two that is at least n and `smallest`, itself a power of two."""
    return max(smallest, 1 << max(n - 1, 0).bit_length())
