"""Masks are decoded as COCO encodes them, and their polygons cover the same pixels; others are errors."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vipllava_jax.data.masks import decode_mask, mask_polygons, parse_counts, trace

masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(lambda shape: arrays(bool, shape))
RING = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 1]], bool)


def counts_of(mask: np.ndarray) -> list[int]:
    """The run lengths of a mask hw, pixel by pixel down its columns."""
    counts, marked = [0], False
    for pixel in mask.T.ravel():
        if pixel != marked:
            counts.append(0)
            marked = not marked
        counts[-1] += 1
    return counts


def compressed(counts: list[int]) -> str:
    """COCO's string, written by hand: five bits per character, the difference from two before."""
    text = ''
    for n, count in enumerate(counts):
        number = count - counts[n - 2] if n > 2 else count
        while True:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | 32 * more))
            if not more:
                break
    return text


@given(masks.filter(np.any))
def test_both_forms_are_decoded_to_the_mask(mask):
    height, width = mask.shape
    counts = counts_of(mask)
    for form in (counts, np.array(counts), compressed(counts), compressed(counts).encode()):
        assert (decode_mask({'size': [height, width], 'counts': form}, (width, height)) == mask).all()


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
def test_strings_hold_any_counts(counts):
    assert parse_counts(compressed(counts)) == counts


def test_a_string_from_coco_is_decoded():
    # from the tests of COCO's API
    assert parse_counts('61X13mN000`0') == [6, 1, 40, 4, 5, 4, 5, 4, 21]


@given(st.text(st.characters(max_codepoint=130), max_size=40))
def test_any_string_is_decoded_or_refused(text):
    with contextlib.suppress(ValueError):
        assert decode_mask({'size': [3, 4], 'counts': text}, (4, 3)).shape == (3, 4)


@pytest.mark.parametrize(
    ('encoded', 'message'),
    [
        ({'counts': [12]}, 'a mask has the size None'),
        ({'size': [4, 3], 'counts': [12]}, r'a mask has the size \[4, 3\] .* the picture has \[3, 4\]'),
        ({'size': '34', 'counts': [12]}, "a mask has the size '34'"),
        ({'size': [3, 4], 'counts': [12]}, 'a mask is empty'),
        ({'size': [3, 4], 'counts': [6, 5]}, 'must add up to 12 pixels: their sum is 11'),
        ({'size': [3, 4], 'counts': [6, -1, 7]}, 'a run of a mask is -1'),
        ({'size': [3, 4], 'counts': [6, True, 5]}, 'a run of a mask is True'),
        ({'size': [3, 4], 'counts': [10**40]}, 'a run of a mask is 1000'),
        ({'size': [3, 4], 'counts': [6.0, 6]}, r'a run of a mask is 6\.0'),
        ({'size': [3, 4], 'counts': None}, '"counts" of a mask is None'),
        ({'size': [3, 4], 'counts': 'é'}, 'damaged at character 0'),
        ({'size': [3, 4], 'counts': 'PP'}, 'ends within a number'),
        ({'size': [3, 4], 'counts': 'o' * 20}, 'damaged at character 7'),
        ({'size': [3, 4], 'counts': 'O' + compressed([13])}, 'there is a negative one'),
    ],
)
def test_damaged_masks_are_errors(encoded, message):
    with pytest.raises(ValueError, match=message):
        decode_mask(encoded, (4, 3))


def test_the_number_of_runs_is_bounded(monkeypatch):
    monkeypatch.setattr('vipllava_jax.data.masks.MAX_RUNS', 5)
    counts = [1] * 6
    for form in (counts, compressed(counts), '0' * 99):
        with pytest.raises(ValueError, match='expected at most'):
            decode_mask({'size': [2, 3], 'counts': form}, (3, 2))
    mask = decode_mask({'size': [1, 5], 'counts': counts[:5]}, (5, 1))
    assert mask.tolist() == [[False, True, False, True, False]]


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
    monkeypatch.setattr('vipllava_jax.data.masks.MAX_CORNERS', 7)
    with pytest.raises(ValueError, match='the outline of a mask has 8 corners, expected at most 7'):
        mask_polygons(RING)
