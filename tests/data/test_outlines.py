"""The polygons of a mask cover its pixels exactly, with holes cut open or as outlines of their own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vipllava_jax.data.outlines import mask_polygons, trace

masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda shape: arrays(bool, shape))
RING = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1]], bool)


def crossings(polygon, shape) -> np.ndarray:
    """How many vertical edges lie to the left of each pixel hw."""
    counts = np.zeros(shape, int)
    for (x1, y1), (x2, y2) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        assert (x1 == x2) != (y1 == y2)  # corners only
        if x1 == x2:
            counts[min(y1, y2) : max(y1, y2), x1:] += 1
    return counts


@given(masks.filter(np.any))
def test_the_polygons_cover_the_pixels_once_and_have_no_holes(mask):
    polygons = mask_polygons(mask)
    assert (sum(crossings(polygon, mask.shape) % 2 for polygon in polygons) == mask).all()


@given(masks.filter(np.any))
def test_the_outlines_of_holes_are_polygons_as_well_if_asked_for(mask):
    polygons = mask_polygons(mask, holes=True)
    assert (sum(crossings(polygon, mask.shape) for polygon in polygons) % 2 == mask).all()


def test_a_ring_is_cut_open():
    solid, empty = trace(RING)
    assert (solid, empty) == ([[(1, 1), (4, 1), (4, 4), (1, 4)]], [[(2, 2), (3, 2), (3, 3), (2, 3)]])
    assert mask_polygons(RING, holes=True) == solid + empty
    assert len(mask_polygons(RING)) == 2


def test_pixels_that_touch_at_a_corner_are_parts_of_their_own():
    for mask in (np.eye(2, dtype=bool), np.eye(2, dtype=bool)[::-1]):
        assert sorted(map(len, mask_polygons(mask))) == [4, 4]


def test_the_number_of_corners_is_bounded(monkeypatch):
    monkeypatch.setattr('vipllava_jax.data.outlines.MAX_CORNERS', 7)
    with pytest.raises(ValueError, match='the outline of a mask has 8 corners, expected at most 7'):
        mask_polygons(RING)
