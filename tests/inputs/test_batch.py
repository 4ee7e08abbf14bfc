import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax.inputs.batch import Batch, bucket


def batch(rows: int) -> Batch:
    counts = np.arange(rows, dtype=np.int32)
    return Batch(np.zeros((rows, 128), np.int32), counts, np.zeros((rows, 2, 28, 28, 3), np.float32), counts)


@given(st.integers(0, 10_000))
def test_a_bucket_is_the_next_multiple_of_128(length):
    assert bucket(length) % 128 == 0
    assert 0 <= bucket(length) - length <= 128
    assert bucket(length) >= 128


def test_the_repr_has_the_shapes():
    expected = (
        'Batch(tokens=int32[3,128], lengths=int32[3], images=float32[3,2,28,28,3], image_counts=int32[3])'
    )
    assert repr(batch(3)) == str(batch(3)) == expected


def test_a_batch_of_shapes_or_none_has_a_repr():
    """JAX maps functions over tuples, so that a batch may hold shapes, tracers or None."""
    shapes = jax.eval_shape(lambda batch: batch, batch(3))
    assert repr(shapes) == repr(batch(3))
    assert repr(jax.tree.map(lambda _: None, batch(3))).startswith('Batch(tokens=NoneType')
    assert 'float32[3,2,28,28,3]' in shapes._repr_html_()


def test_a_notebook_shows_the_first_rows():
    html = batch(12)._repr_html_()
    assert '<th>tokens</th><td>int32[12,128]</td>' in html
    assert '<th>row 7</th><td>7 tokens, 7 images</td>' in html
    assert '<th>row 1</th><td>1 tokens, 1 image</td>' in html
    assert '<th>…</th><td>4 more rows</td>' in html
    assert 'more rows' not in batch(8)._repr_html_()
