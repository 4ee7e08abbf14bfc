"""Marks with their coordinates in pixels of a picture, or in fractions of it."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from vipllava_jax.inputs.marks import Mark

Scale = tuple[float, float]


def in_pixels(mark: Mark, size: tuple[int, int]) -> Mark:
    """The mark, which lies on a picture of (width, height) pixels, with its coordinates in pixels."""
    return _scaled(mark, size if _is_relative(mark) else (1, 1), 'pixel')


def in_fractions(mark: Mark, size: tuple[int, int]) -> Mark:
    """The mark, which lies on a picture of (width, height) pixels, with its coordinates in fractions."""
    return _scaled(mark, (1, 1) if _is_relative(mark) else (1 / size[0], 1 / size[1]), 'relative')


def bounds(mark: Mark) -> tuple[float, float, float, float]:
    """The box of a mark, or the smallest one around its polygons or its point."""
    if mark.box is not None:
        x1, y1, x2, y2 = mark.box
        return x1, y1, x2, y2
    x, y = zip(*(_corners(mark)), strict=True)
    return min(x), min(y), max(x), max(y)


def _corners(mark: Mark) -> list[Any]:
    """All points of a mark: the corners of its polygons or, without one, its point."""
    return [pair for polygon in mark.polygon or ((mark.point,),) for pair in polygon]


def _is_relative(mark: Mark) -> bool:
    numbers = [number for part in (mark.box, mark.point) if part for number in part]
    numbers += [number for polygon in mark.polygon or () for pair in polygon for number in pair]
    return mark.units == 'relative' or (mark.units is None and max(numbers) <= 1)


def _scaled(mark: Mark, scale: Scale, units: Literal['pixel', 'relative']) -> Mark:
    def scaled(numbers: Sequence[float] | None) -> tuple[float, ...] | None:
        return None if numbers is None else tuple(x * scale[n % 2] for n, x in enumerate(numbers))

    polygons = None if mark.polygon is None else [[scaled(pair) for pair in part] for part in mark.polygon]
    return dataclasses.replace(
        mark, box=scaled(mark.box), point=scaled(mark.point), polygon=polygons, units=units
    )
