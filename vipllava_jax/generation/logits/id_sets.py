"""Sets of ids, one for each row, padded to few shapes so that lists of other lengths compile nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from vipllava_jax.inputs.padding import pad_ids, power_of_two


def id_set(ids: ArrayLike, B: int) -> Array:
    """The same ids for B rows, stored as ids + 1: BW int32; W is a power of two.

    Zeros are no ids. They fill the unused columns, also of a row that is inserted into a wider state.
    """
    stored = np.unique(np.asarray(ids, np.int32)) + 1
    # jnp.asarray would compile a program for each width.
    return jax.device_put(pad_ids([stored] * B, power_of_two(len(stored), 8), 0))


def contains(ids: Array, V: int) -> Array:
    """Whether each token is in the set of its row, BW -> BV."""
    B = len(ids)
    columns = jnp.where(ids > 0, ids - 1, V)  # what lies past the last column is dropped
    return jnp.zeros((B, V), bool).at[jnp.arange(B)[:, None], columns].set(True, mode='drop')
