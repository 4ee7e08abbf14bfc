"""Masks of COCO: decodes their run lengths, and traces their outlines as polygons."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from vipllava_jax.inputs.coordinates import MAX_CORNERS, as_sequence
from vipllava_jax.messages import brief

Polygon = list[tuple[int, int]]
MAX_RUNS = 2_000_000  # the maximum per mask; a large photo has a few in each column
MAX_DIGITS = 7  # the maximum per run in a string: 35 bits


def decode_mask(encoded: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A mask {"size": [h, w], "counts": …} of a picture of (width, height) pixels -> the mask hw of bools.

    `counts` are run lengths, as a list or in COCO's compressed string. Raises ValueError if they do not have
    the size of the picture, or nothing is marked.
    """
    width, height = size
    stated = as_sequence(encoded.get('size'))
    if stated is None or [*stated] != [height, width]:
        raise ValueError(
            f'a mask has the size {brief(encoded.get("size"))} (height, width), but the picture has '
            f'{brief([height, width])}: give the picture that was annotated'
        )
    counts = encoded.get('counts')
    if isinstance(counts, (str, bytes)):
        runs = parse_counts(counts if isinstance(counts, str) else counts.decode('latin-1'))
    else:
        runs = _check_list(counts, width * height)
    if any(run < 0 for run in runs) or sum(runs) != width * height:
        found = 'there is a negative one' if min(runs, default=0) < 0 else f'their sum is {sum(runs)}'
        raise ValueError(f'the run lengths of a mask must add up to {width * height} pixels: {found}')
    marked = np.arange(len(runs)) % 2 == 1
    mask = np.repeat(marked, runs).reshape(width, height).T
    if not mask.any():
        raise ValueError('a mask is empty: leave its region out')
    return mask


def _check_list(counts: Any, largest: int) -> list[int]:
    """The run lengths of a list."""
    runs = as_sequence(counts)
    if runs is None:
        raise ValueError(f'"counts" of a mask is {brief(counts)}: expected a list of numbers, or a string')
    if len(runs) > MAX_RUNS:
        raise ValueError(f'a mask has {len(runs)} runs, expected at most {MAX_RUNS}')
    for run in runs:
        if isinstance(run, bool) or not isinstance(run, (int, np.integer)) or not 0 <= run <= largest:
            raise ValueError(f'a run of a mask is {brief(run)}: expected a whole number up to {largest}')
    return [int(run) for run in runs]


def parse_counts(text: str) -> list[int]:
    """COCO's compressed string -> the run lengths; ValueError if it is damaged.

    A number has five bits per character, the lowest first, with an offset of 48; 32 says that another
    character follows, and 16 in the last one that the number is negative. From the fourth on, a number is the
    difference from the run before the previous one.
    """
    if len(text) > MAX_DIGITS * MAX_RUNS:
        raise ValueError(f'a mask has {len(text)} characters, expected at most {MAX_DIGITS * MAX_RUNS}')
    runs: list[int] = []
    number = digits = 0
    for at, character in enumerate(text):
        code = ord(character) - 48
        if not 0 <= code < 64 or digits == MAX_DIGITS:
            raise ValueError(f'the mask {brief(text, 40)} is damaged at character {at}: encode it again')
        number |= (code & 31) << 5 * digits
        digits += 1
        if code & 32:
            continue
        if code & 16:
            number -= 1 << 5 * digits
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = digits = 0
    if digits:
        raise ValueError(f'the mask {brief(text, 40)} ends within a number: encode it again')
    if len(runs) > MAX_RUNS:
        raise ValueError(f'a mask has {len(runs)} runs, expected at most {MAX_RUNS}')
    return runs


def mask_polygons(mask: np.ndarray, holes: bool = False) -> list[Polygon]:
    """A mask hw of bools, not empty -> polygons in pixels that cover the same area, without overlaps.

    A part with holes is cut into parts without, because a polygon that is filled has none. With `holes` the
    outlines are not cut, and those of the holes are polygons as well. Raises ValueError if there are more
    corners than a mark may have.
    """
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    top, left = int(rows[0]), int(columns[0])
    mask = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    solid, empty = trace(mask)
    if empty and not holes:
        # Without the column, each hole is open to the left or right, since it is connected.
        cuts = {min(x for x, _ in hole) + max(x for x, _ in hole) >> 1 for hole in empty}
        edges = [0, *sorted(cuts), mask.shape[1]]
        parts = [(start, mask[:, start:stop]) for start, stop in itertools.pairwise(edges)]
        solid = [_moved(p, start, 0) for start, part in parts if part.any() for p in trace(part)[0]]
        empty = []
    return [_moved(polygon, left, top) for polygon in (*solid, *empty)]


def _moved(polygon: Polygon, dx: int, dy: int) -> Polygon:
    return [(x + dx, y + dy) for x, y in polygon]


def trace(mask: np.ndarray) -> tuple[list[Polygon], list[Polygon]]:
    """A mask hw -> the outlines of its parts, and those of the holes in them.

    Pixels that only touch at a corner belong to different parts, but to one hole.
    """
    around = np.pad(mask, 1)
    a, b, c, d = around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]  # the pixels at a corner
    crossing = (a == d) & (b == c) & (a != b)
    at = (a ^ b ^ c ^ d) | crossing
    y, x = np.nonzero(at)
    y, x = (np.repeat(values, 1 + crossing[y, x]) for values in (y, x))
    if len(x) > MAX_CORNERS:
        raise ValueError(f'the outline of a mask has {len(x)} corners, expected at most {MAX_CORNERS}')
    second = np.zeros(len(x), bool)  # of the two corners at a crossing; the first has the line to the left
    second[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    upper = second ^ (crossing[y, x] & b[y, x])  # sorts the one with the line upwards first
    # Corners in a row are joined in pairs, from the left; those in a column from the top.
    beside = _partners(np.arange(len(x)))
    below = _partners(np.lexsort((upper, y, x)))
    solid: list[Polygon] = []
    empty: list[Polygon] = []
    seen = np.zeros(len(x), bool)
    for start in range(len(x)):
        if seen[start]:
            continue
        corners, corner = [], start
        while not seen[corner]:
            other = beside[corner]
            seen[corner] = seen[other] = True
            corners += [(int(x[corner]), int(y[corner])), (int(x[other]), int(y[other]))]
            corner = below[other]
        (solid if d[y[start], x[start]] else empty).append(corners)
    return solid, empty


def _partners(order: np.ndarray) -> np.ndarray:
    """The other one of each pair when corners are taken two by two in this order."""
    partners = np.empty(len(order), int)
    partners[order[::2]], partners[order[1::2]] = order[1::2], order[::2]
    return partners
