"""Traces the outlines of masks: the polygons that follow the edges of their pixels."""

import itertools

import numpy as np

from vipllava_jax.inputs.coordinates import MAX_CORNERS

Polygon = list[tuple[int, int]]


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
