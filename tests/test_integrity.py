"""Checksums detect every change of a few bits, wherever it is; NaN and infinity are found."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax.integrity import ROWS, WORDS, checksum, finite

ROW = 8 * WORDS


@given(
    st.sampled_from([1, 7, 8, ROW - 1, ROW, ROW + 3, 3 * ROW, ROWS * ROW + ROW + 5]),
    st.lists(st.integers(0, 2**63), min_size=1, max_size=3, unique=True),
)
def test_up_to_three_flipped_bits_change_the_checksum(size, bits):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    before = checksum(data)
    flips = {bit % (8 * size) for bit in bits}
    for bit in flips:
        data[bit // 8] ^= 1 << bit % 8
    assert checksum(data) != before
    for bit in flips:
        data[bit // 8] ^= 1 << bit % 8
    assert checksum(data) == before


def test_the_checksum_depends_on_order_and_length():
    data = np.random.default_rng(0).integers(0, 256, 4 * ROW, np.uint8)
    words = data.view('<u8')
    swapped = [words[[1, 0, *range(2, words.size)]], np.concatenate([words[WORDS:], words[:WORDS]])]
    others = [data, data[:-1], np.append(data, np.uint8(0)), np.append(data, np.uint8(1)), *swapped]
    assert len({checksum(other) for other in others}) == len(others)
    assert checksum(np.zeros(0, np.float32)) != checksum(np.zeros(1, np.float32))


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16', 'int8', 'int32'])
def test_the_checksum_does_not_depend_on_the_memory_layout(dtype):
    x = np.arange(6).reshape(2, 3).astype(jnp.dtype(dtype))
    assert checksum(x.T) == checksum(np.ascontiguousarray(x.T)) != checksum(x)
    assert checksum(x) == checksum(jnp.asarray(x)) == checksum(x.reshape(-1))
    assert checksum(np.array(1, x.dtype)) == checksum(np.array([1], x.dtype))


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_nan_and_infinity_are_found(dtype):
    x = np.zeros(ROWS * WORDS + 3, jnp.dtype(dtype))
    x[:5] = [jnp.finfo(dtype).max, jnp.finfo(dtype).min, jnp.finfo(dtype).tiny, -0.0, 1]
    assert finite(x)
    for at in (0, 1, -1):
        for value in (np.nan, -np.nan, np.inf, -np.inf):
            changed = x.copy()
            changed[at] = value
            assert not finite(changed)
            assert not finite(changed.reshape(3, -1).T if changed.size % 3 == 0 else changed[::-1])


def test_integers_are_finite():
    assert all(finite(np.array(x)) for x in ([-1, 2], [True], np.zeros(0, np.int8), np.float64(1)))
    assert not finite(np.float64('inf'))
