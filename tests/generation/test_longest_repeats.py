"""A size of sequences that no row has costs no more than the longest row."""

import jax
import jax.numpy as jnp
import numpy as np

from vipllava_jax.generation.repeats import repeats_of


def test_the_largest_size_is_compared_as_far_as_the_rows_reach():
    ids = jnp.int32([[1, 2, 1, 2, 1, 2, 0, 0], [3, 3, 3, 3, 3, 3, 3, 3]])
    numbers = jax.jit(repeats_of)(ids, jnp.int32([6, 8]), jnp.int32(2**31 - 2))
    np.testing.assert_array_equal(numbers, [[0, 0, 2, 0, 4, 0, 6, 0], [0, 1, 2, 3, 4, 5, 6, 7]])
