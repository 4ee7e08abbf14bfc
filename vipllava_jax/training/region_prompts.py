"""What a row says and which marks are drawn on its pictures, settled anew for each epoch."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS, Mark, parse
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.training import conversations

SLACK = 1.0  # pixels that a box may lie outside: the data sets round


class Prompted(NamedTuple):
    """A conversation, and the marks on each of its pictures."""

    turns: list[Turn]
    marks: tuple[tuple[Mark, ...], ...]  # one tuple a picture


def compose(fields: dict[str, Any], images: int, rng: np.random.Generator | None) -> Prompted:
    """The fields of a row and the number of its pictures -> what is said, and drawn; ValueError if it cannot.

    Shapes and colours vary with the generator; without one they are always the same, as in evaluation.
    """
    return _tagged(fields, images, rng)


def _tagged(fields: dict[str, Any], images: int, rng: np.random.Generator | None) -> Prompted:
    """The form that any row may have: `bboxes` and `segmentations`, or `marks`, and `<bboxN>` in the text."""
    turns = conversations.read(fields.get('conversations'), images)
    marked = _written(fields, images) if fields.get('marks') else _boxed(fields, images, rng)
    spoken = [mark for _, mark in marked]
    turns = [turn._replace(text=phrased(turn.text, spoken, number)) for number, turn in enumerate(turns)]
    return Prompted(turns, tuple(tuple(mark for at, mark in marked if at == i) for i in range(images)))


def _written(fields: dict[str, Any], images: int) -> list[tuple[int, Mark]]:
    texts = fields['marks']
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f'"marks" is {str(texts)[:80]!r}: expected a list of texts')
    marked = [parse(text) for text in texts]
    for text, (at, _) in zip(texts, marked, strict=True):
        if at >= images:
            raise ValueError(f'mark {text!r} is on image {at + 1}, but the row has {images}')
    return marked


def _boxed(fields: dict[str, Any], images: int, rng: np.random.Generator | None) -> list[tuple[int, Mark]]:
    places = objects(fields)
    if places and not images:
        raise ValueError('it has "bboxes", but no image')
    return [(0, place.mark(*style)) for place, style in zip(places, styles(len(places), rng), strict=True)]


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
    return [Object(box, _sound(outline)) for box, outline in zip(boxes, outlines, strict=True)]


def _sound(outline: Any) -> tuple[Any, ...]:
    """The polygons that have an area: data sets hold lines and lone points too, that could not be drawn."""
    if isinstance(outline, dict):
        raise ValueError('a segmentation is run-length encoded: expected a list of polygons')
    kept = []
    for polygon in outline or ():
        if len(polygon) >= 6:
            corners = np.reshape(polygon[: len(polygon) // 2 * 2], (-1, 2))
            if np.linalg.matrix_rank(corners - corners[0]) == 2 and np.ptp(corners, axis=0).min() >= 1:
                kept.append(polygon)
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


def phrased(text: str, marks: Sequence[Mark], number: int) -> str:
    """A turn's text with `<bboxN>`, counted from 0, and `<bbox>`, the first, replaced by phrases."""

    def phrase(match: re.Match[str]) -> str:
        n = int(match[1] or 0)
        if n >= len(marks):
            raise ValueError(f'turn {number} says {match[0]}, but the row has {len(marks)} mark(s)')
        return marks[n].phrase

    return re.sub(r'<bbox(\d*)>', phrase, text)


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
