"""An epoch's order has all rows, and batches of rows with similar lengths."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax.data import order
from vipllava_jax.data.rows import Rows


def counted(count, rng):
    return Rows(
        (), (), None, *[np.zeros(count, int)] * 5, rng.integers(0, 3, count), rng.integers(0, 999, count)
    )


@given(st.integers(1, 300), st.integers(1, 40), st.booleans(), st.integers(0, 3), st.integers(0, 3))
def test_an_epoch_has_all_rows(count, batch_size, by_length, seed, epoch):
    rows = counted(count, np.random.default_rng(0))
    result = order.epoch_order(rows, batch_size, by_length, seed, epoch)
    assert sorted(result) == [*range(count)]
    np.testing.assert_array_equal(result, order.epoch_order(rows, batch_size, by_length, seed, epoch))


def test_rows_of_a_batch_have_similar_lengths():
    rows = counted(4000, np.random.default_rng(0))
    grouped = order.epoch_order(rows, 8, True, 0, 0).reshape(-1, 8)
    mixed_up = order.epoch_order(rows, 8, False, 0, 0).reshape(-1, 8)
    assert (
        np.ptp(rows.text_lengths[grouped], axis=1).mean()
        < np.ptp(rows.text_lengths[mixed_up], axis=1).mean() / 5
    )
    assert (np.ptp(rows.image_counts[grouped], axis=1) > 0).mean() < 0.05
    means = rows.text_lengths[grouped].mean(axis=1)
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.2


def test_each_row_and_epoch_has_its_seed():
    seeds = {order.sample_seed(s, e, name) for s in (0, 1) for e in (0, 1) for name in ('a', '0 a', '\ud800')}
    assert len(seeds) == 12
    assert order.sample_seed(3, 1, 'x-1') == order.sample_seed(3, 1, 'x-1')
