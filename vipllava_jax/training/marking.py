"""What a row points out, and the marks that do so: their shapes, colours and words."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vipllava_jax.inputs.images import open_image
from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS, Mark, draw
from vipllava_jax.inputs.prompts import Turn

SLACK = 1.0  # pixels that a box may lie outside: the data sets round


class Prompted(NamedTuple):
    """A conversation, and the marks on each of its pictures."""

    turns: list[Turn]
    marks: tuple[tuple[Mark, ...], ...]  # one tuple a picture


def text_of(fields: dict[str, Any], name: str) -> str:
    """A field that must be a text."""
    if not isinstance(fields[name], str) or not fields[name]:
        raise ValueError(f'"{name}" is {str(fields[name])[:80]!r}: expected a text')
    return fields[name]


class Object(NamedTuple):
    """Where something is on a picture, in its pixels: the box, and polygons if its outline is known."""

    box: Sequence[float]
    polygons: tuple[Any, ...] = ()

    def mark(self, shape: str, color: Any, width: float | None = None) -> Mark:
        return Mark(
            shape, box=self.box, polygon=self.polygons or None, color=color, width=width, units='pixel'
        )


def objects(fields: dict[str, Any]) -> list[Object]:
    """`bboxes` and, if there are any, `segmentations`: for each box a list of polygons, or null."""
    boxes = fields.get('bboxes') or []
    outlines = fields.get('segmentations') or [None] * len(boxes)
    if not isinstance(boxes, list) or not isinstance(outlines, list) or len(boxes) != len(outlines):
        raise ValueError('"bboxes" must be a list of boxes, and "segmentations" as long a list')
    return [Object(box, sound(outline)) for box, outline in zip(boxes, outlines, strict=True)]


def sound(outline: Any) -> tuple[Any, ...]:
    """The polygons that have an area: data sets hold lines and lone points too, that could not be drawn."""
    if isinstance(outline, dict):
        raise ValueError('a segmentation is run-length encoded: expected a list of polygons')
    kept = []
    for polygon in outline or ():
        corners = np.ravel(polygon)
        corners = corners[: len(corners) // 2 * 2].reshape(-1, 2)
        if (
            len(corners) > 2
            and np.ptp(corners, axis=0).min() >= 1
            and np.linalg.matrix_rank(corners - corners[0]) == 2
        ):
            kept.append(corners.ravel().tolist())
    return tuple(kept)


def styles(
    count: int, rng: np.random.Generator | None, shapes: Sequence[str] = tuple(PREPOSITIONS)
) -> list[tuple[str, Any]]:
    """A shape and a colour for each of so many marks: those of one shape get names, and different ones.

    A shape that comes once has a colour without a name in half of the cases.
    """
    names = [*COLORS]
    if rng is None:
        return [(shapes[0], names[n % len(names)]) for n in range(count)]
    picked = [shapes[n] for n in rng.integers(len(shapes), size=count)]
    left = [names[n] for n in rng.permutation(len(names))]
    unnamed = [tuple(rgb) for rgb in rng.integers(256, size=(count, 3)).tolist()]
    named = [picked.count(shape) > 1 or rng.random() < 0.5 for shape in picked]
    return [
        (shape, left.pop() if name and left else rgb)
        for shape, name, rgb in zip(picked, named, unnamed, strict=True)
    ]


def mention(mark: Mark, rng: np.random.Generator | None) -> str:
    """The phrase of a mark, in half of the cases without its 'the': 'within red rectangle'."""
    return mark.phrase if rng is None or rng.random() < 0.5 else mark.phrase.replace(' the ', ' ', 1)


def inserted(text: str, phrases: Sequence[str], what: str) -> str:
    """A text with `<bboxN>`, counted from 0, and `<bbox>`, the first, replaced by the phrases."""

    def phrase(match: re.Match[str]) -> str:
        n = int(match[1] or 0)
        if n >= len(phrases):
            raise ValueError(f'{what} says {match[0]}, but the row has {len(phrases)} mark(s)')
        return phrases[n]

    return re.sub(r'<bbox(\d*)>', phrase, text)


def drawn(path: Path, marks: Sequence[Mark], seed: int | None = None) -> Image.Image:
    """A file's picture and its marks, each settled -> the picture with them on it."""
    image = open_image(path)
    return draw(image, [settled(mark, image.size) for mark in marks], seed) if marks else image


def settled(mark: Mark, size: tuple[int, int]) -> Mark:
    """The mark on a picture of width x height pixels, brought inside if it is out by rounding.

    ValueError if it lies outside by more, or is too small to be drawn.
    """
    if mark.units == 'pixel':

        def inside(value: float, limit: int) -> float:
            nearest = min(max(value, 0.0), float(limit))
            return nearest if abs(value - nearest) <= SLACK else value

        def pairs(values: Any) -> Any:
            return tuple((inside(x, size[0]), inside(y, size[1])) for x, y in values)

        box = None if mark.box is None else sum(pairs([mark.box[:2], mark.box[2:]]), ())
        mark = dataclasses.replace(
            mark, box=box, polygon=None if mark.polygon is None else [*map(pairs, mark.polygon)]
        )
    mark.region(size)
    return mark
