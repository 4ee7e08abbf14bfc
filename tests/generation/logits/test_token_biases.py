"""Biases are added where a sequence would be completed, and lists of similar lengths have one shape."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipllava_jax.generation.logits.id_sets import contains, id_set
from vipllava_jax.generation.logits.token_biases import bias_of, token_biases

B, S, V = 3, 6, 4
computed = jax.jit(bias_of, static_argnames='V')
tokens = st.integers(0, V - 1)
finite = st.floats(-9, 9, width=32)
biases = st.lists(st.tuples(st.lists(tokens, min_size=1, max_size=8), finite), max_size=8)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    biases,
    st.lists(st.lists(tokens, min_size=S, max_size=S), min_size=B, max_size=B),
    st.lists(st.integers(1, S), min_size=B, max_size=B),
)
def test_a_bias_is_added_where_the_ids_before_the_last_are_the_newest(biases, rows, lengths):
    ids, lengths = np.array(rows), np.array(lengths)
    expected = np.zeros((B, V))
    for b in range(B):
        row = rows[b][: lengths[b]]
        for sequence, bias in biases:
            *before, last = sequence
            if row[len(row) - len(before) :] == before and len(before) <= len(row):
                expected[b, last] += bias
    got = computed(token_biases(biases, B), ids, lengths, V)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_a_ban_excludes_the_token_alone():
    banned = token_biases([((1, 2), -np.inf), ((3,), -np.inf), ((2, 0), -np.inf)], B)
    got = computed(banned, np.full((B, S), 1), np.array([1, 2, 3]), V)
    np.testing.assert_array_equal(got, [[0, 0, -np.inf, -np.inf]] * B)


@pytest.mark.parametrize(
    ('sequences', 'shape'),
    [([], (8, 1)), ([[1]] * 8, (8, 1)), ([[1]] * 9, (16, 1)), ([[1, 2, 3]], (8, 4)), ([[0] * 17], (8, 32))],
)
def test_lists_are_padded_to_powers_of_two(sequences, shape):
    made = token_biases([(ids, 1.0) for ids in sequences], B)
    assert made.ids.shape == (B, *shape)
    assert made.lengths.shape == made.bias.shape == (B, shape[0])


def test_a_set_contains_its_ids_alone():
    for ids in ([], [0], [V - 1, 1, 1], range(V), [V, V + 9]):
        expected = [[token in ids for token in range(V)]] * B
        np.testing.assert_array_equal(contains(id_set(ids, B), V), expected)
    assert id_set(range(9), B).shape == (B, 16)
    assert id_set([1] * 9, B).shape == (B, 8)
