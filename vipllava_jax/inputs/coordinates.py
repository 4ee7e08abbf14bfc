"""Checks points, boxes and polygons from callers, mark specifications and rows of data."""

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vipllava_jax.messages import brief

MAX_CORNERS = (
    100_000  # the maximum per mark; the exact outline of an object in a large photo has a few thousand
)
MAX_POLYGONS = 1000  # the maximum per mark
MAX_COORDINATE = 1e9  # no picture is nearly as large; the bound keeps arithmetic on coordinates finite

Pair = tuple[float, float]


def as_sequence(values: Any) -> Any | None:
    """Returns values that are a sequence (a list, a tuple or an array), or None for anything else.

    A string does not count as a sequence: its characters would be read as numbers.
    """
    if isinstance(values, (list, tuple)):
        return values
    if isinstance(values, (str, bytes, bytearray, memoryview, Mapping, os.PathLike)):
        return None
    if isinstance(values, np.ndarray):
        return values if values.ndim and values.dtype.kind in 'iufO' else None
    shape = getattr(values, 'shape', None)  # an array of another library
    indexed = hasattr(values, '__len__') and hasattr(values, '__getitem__')
    return values if indexed and shape != () else None


def is_number(value: Any) -> bool:
    """Whether a value is a single number; a bool or a string that looks like a number is not."""
    if isinstance(value, (int, float)):
        return not isinstance(value, bool)
    if isinstance(value, (str, bytes, np.bool_)) or not hasattr(value, '__float__'):
        return False
    return not getattr(value, 'shape', ())


def read_number(value: Any) -> float:
    """A finite number that can be a coordinate; ValueError for anything else."""
    if not is_number(value):
        raise ValueError(f'expected numbers, found {brief(value)}')
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise ValueError(f'expected numbers, found a {type(value).__name__}') from None
    except OverflowError:
        found = math.inf
    if not abs(found) < MAX_COORDINATE:
        raise ValueError(
            f'coordinates must be finite and less than {MAX_COORDINATE:.0e}, found {brief(value)}'
        )
    return found


def read_numbers(values: Any, count: int | None, rule: str) -> tuple[float, ...]:
    """A sequence of `count` numbers, or of any number of them if it is None; ValueError quotes the rule."""
    found = as_sequence(values)
    if found is None:
        raise ValueError(f'expected numbers, found {brief(values)}: {rule}')
    if count is not None and len(found) != count:
        raise ValueError(f'found {len(found)} numbers, {brief(found)}: {rule}')
    if len(found) > 2 * MAX_CORNERS:
        raise ValueError(f'found {len(found)} numbers, expected at most {2 * MAX_CORNERS}: {rule}')
    try:
        return tuple(read_number(value) for value in found)
    except ValueError as error:
        raise ValueError(f'{error}: {rule}') from None


def read_box(values: Any) -> tuple[float, ...]:
    """x1, y1, x2, y2 of a box that is not empty."""
    corners = read_numbers(values, 4, 'a box has x1, y1, x2, y2')
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise ValueError(
            f'box {brief(corners)} is empty: give the upper left and then the lower right corner'
        )
    return corners


def read_polygons(values: Any) -> tuple[tuple[Pair, ...], ...]:
    """One polygon or several, each flat or as pairs -> a tuple of polygons as pairs."""
    parts = _read_sequence(values)
    nested = [part for value in parts if (part := as_sequence(value)) is not None]
    one = not nested or (len(nested) == len(parts) and all(map(_is_pair, nested)))
    several = [parts] if one else parts
    if len(several) > MAX_POLYGONS:
        raise ValueError(f'found {len(several)} polygons, expected at most {MAX_POLYGONS}')
    polygons = tuple(_read_polygon(polygon) for polygon in several)
    if sum(map(len, polygons)) > MAX_CORNERS:
        raise ValueError(
            f'the polygons have {sum(map(len, polygons))} corners, expected at most {MAX_CORNERS}'
        )
    return polygons


def _read_sequence(values: Any) -> Any:
    found = as_sequence(values)
    if found is None:
        raise ValueError(
            f'expected numbers, found {brief(values)}: a polygon has x1, y1, x2, y2, x3, y3, ...'
        )
    if len(found) > 2 * MAX_CORNERS:
        raise ValueError(f'a polygon has {len(found)} numbers, expected at most {2 * MAX_CORNERS}')
    return found


def _is_pair(values: Any) -> bool:
    return len(values) == 2 and all(as_sequence(value) is None for value in values)


def _read_polygon(values: Any) -> tuple[Pair, ...]:
    """Corners that enclose an area."""
    parts = _read_sequence(values)
    if any(as_sequence(part) is not None for part in parts):
        pairs = [read_numbers(part, 2, 'a corner of a polygon has x and y') for part in parts]
    else:
        flat = read_numbers(parts, None, 'a polygon has x1, y1, x2, y2, x3, y3, ...')
        if len(flat) % 2:
            raise ValueError(
                f'found {len(flat)} numbers, {brief(flat)}: expected x1, y1, x2, y2, x3, y3, ...'
            )
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
    corners = tuple((x, y) for x, y in pairs)
    if len(corners) < 3 or not encloses_area(corners):
        shown = brief(flatten(corners))
        raise ValueError(f'polygon {shown} is empty: give at least three corners that are not on one line')
    return corners


def encloses_area(corners: Any) -> bool:
    """Whether corners N2, at least one, are not all on one line."""
    return bool(np.linalg.matrix_rank(np.subtract(corners, corners[0])) == 2)


def flatten(corners: Any) -> list[float]:
    """[(1, 2), (3, 4)] -> [1, 2, 3, 4]"""
    return [number for pair in corners for number in pair]
