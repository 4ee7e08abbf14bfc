"""The numbers that are updated with each id find the same repeated sequences as a search of the whole row."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vipllava_jax.generation.logits.repeats import add_id, repeated, repeats_of

B, S, V = 4, 12, 3


@jax.jit
def prompts(ids, lengths, n):
    numbers = repeats_of(ids, lengths, n.max() - 1)
    return numbers, repeated(numbers, ids, lengths, n, V)


@jax.jit
def step(numbers, ids, lengths, tokens, n):
    numbers = add_id(numbers, ids, tokens)
    return numbers, repeated(numbers, ids, lengths, n, V)


def searched(ids, n):
    """Whether each token would complete a sequence of n ids that is in `ids` already."""
    before = {tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)}
    return [n > 0 and (*ids[len(ids) - n + 1 :], token) in before for token in range(V)]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.lists(st.integers(0, V), min_size=S, max_size=S), min_size=B, max_size=B),
    st.lists(st.integers(1, S - 1), min_size=B, max_size=B),
    st.lists(st.integers(0, S + 3), min_size=B, max_size=B),
)
def test_repeats_are_those_that_a_search_finds(rows, first, sizes):
    """Rows of different lengths and sizes, with an id outside the vocabulary, up to the last slot."""
    rows, lengths, n = np.array(rows), np.array(first), np.array(sizes)
    ids = np.where(np.arange(S) < lengths[:, None], rows, 7)  # what comes after the newest id is arbitrary
    numbers, got = prompts(ids, lengths, n)
    while True:
        expected = [searched(ids[b, : lengths[b]].tolist(), n[b]) for b in range(B)]
        np.testing.assert_array_equal(got, expected)
        if lengths.max() == S:
            break
        tokens = rows[np.arange(B), lengths]
        ids[np.arange(B), lengths] = tokens
        lengths = lengths + 1
        numbers, got = step(numbers, ids, lengths, tokens, n)


def test_the_largest_size_is_compared_as_far_as_the_rows_reach():
    ids = jnp.int32([[1, 2, 1, 2, 1, 2, 0, 0], [3, 3, 3, 3, 3, 3, 3, 3]])
    numbers = jax.jit(repeats_of)(ids, jnp.int32([6, 8]), jnp.int32(2**31 - 2))
    np.testing.assert_array_equal(numbers, [[0, 0, 2, 0, 4, 0, 6, 0], [0, 1, 2, 3, 4, 5, 6, 7]])
