"""Marks keep their place when their coordinates become pixels or fractions."""

import pytest

from vipllava_jax.data.mark_units import bounds, in_fractions, in_pixels
from vipllava_jax.inputs.marks import Mark

SIZE = (40, 30)
MARKS = [
    Mark('rectangle', box=(10, 6, 40, 15)),
    Mark('rectangle', box=(0.25, 0.2, 1, 0.5)),
    Mark('point', box=(0, 0, 1, 1), units='pixel'),
    Mark('mask', polygon=[[0, 0, 20, 0, 20, 30], [1, 1, 2, 2, 3, 1]]),
    Mark('arrow', point=(0.5, 1), color='blue', width=2),
]


@pytest.mark.parametrize('mark', MARKS, ids=str)
def test_the_place_stays(mark):
    pixels, fractions = in_pixels(mark, SIZE), in_fractions(mark, SIZE)
    assert (pixels.units, fractions.units) == ('pixel', 'relative')
    for other in (pixels, fractions, in_pixels(fractions, SIZE), in_fractions(pixels, SIZE)):
        assert other.region(SIZE).box == pytest.approx(mark.region(SIZE).box)
        assert (other.color, other.width) == (mark.color, mark.width)


def test_bounds():
    found = [bounds(mark) for mark in MARKS]
    assert found == [(10, 6, 40, 15), (0.25, 0.2, 1, 0.5), (0, 0, 1, 1), (0, 0, 20, 30), (0.5, 1, 0.5, 1)]
