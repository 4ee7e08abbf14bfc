"""The regions of a row, and the marks that refer to them: their shapes, colours and wording."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vipllava_jax.inputs.coordinates import as_sequence, encloses_area, flatten, read_box, read_numbers
from vipllava_jax.inputs.images import open_image
from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS, Mark, draw
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.messages import brief

TOLERANCE = 1.0  # pixels by which a box may lie outside the picture, because the data sets round


class MarkedConversation(NamedTuple):
    """A conversation, and the marks on each of its pictures."""

    turns: list[Turn]
    marks: tuple[tuple[Mark, ...], ...]  # one tuple per picture


def text_field(fields: dict[str, Any], name: str) -> str:
    """The value of a field that must be a string."""
    value = fields[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f'"{name}" is {brief(value)}: expected a string')
    return value


class ImageObject(NamedTuple):
    """An object's box on a picture, in pixels, and polygons if its outline is known."""

    box: Sequence[float]
    polygons: tuple[Any, ...] = ()

    def mark(self, shape: str, color: Any, width: float | None = None) -> Mark:
        return Mark(
            shape, box=self.box, polygon=self.polygons or None, color=color, width=width, units='pixel'
        )


def read_objects(fields: dict[str, Any]) -> list[ImageObject]:
    """`bboxes` and, if there are any, `segmentations`: for each box a list of polygons, or null."""
    boxes, outlines = fields.get('bboxes'), fields.get('segmentations')
    objects = [] if boxes is None else objects_from_boxes(boxes, '"bboxes"')
    if outlines is None or outlines == []:
        return objects
    if not isinstance(outlines, list) or len(objects) != len(outlines):
        raise ValueError(
            f'"segmentations" is {brief(outlines)}: expected a list with one entry for each of the '
            f'{len(objects)} "bboxes"'
        )
    for n, outline in enumerate(outlines):
        with _naming_field(f'"segmentations"[{n}]'):
            objects[n] = objects[n]._replace(polygons=valid_polygons(outline))
    return objects


def objects_from_boxes(boxes: Any, name: str) -> list[ImageObject]:
    """The objects of a list of boxes; ValueError names the field and the index of an invalid box."""
    if not isinstance(boxes, list):
        raise ValueError(f'{name} is {brief(boxes)}: expected a list of boxes')
    objects = []
    for n, values in enumerate(boxes):
        with _naming_field(f'{name}[{n}]'):
            objects.append(ImageObject(read_box(values)))
    return objects


@contextlib.contextmanager
def _naming_field(field: str) -> Iterator[None]:
    """Prefixes a ValueError with the name of a field."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{field}: {error}') from None


def valid_polygons(outline: Any) -> tuple[Any, ...]:
    """The polygons with an area; lines and single points, which data sets also contain, cannot be drawn."""
    if isinstance(outline, dict):
        raise ValueError('a segmentation is run-length encoded: expected a list of polygons')
    if outline is None:
        return ()
    polygons = as_sequence(outline)
    if polygons is None:
        raise ValueError(f'expected a list of polygons, found {brief(outline)}')
    valid = []
    for polygon in polygons:
        corners = _corners(polygon)
        if len(corners) > 2 and np.ptp(corners, axis=0).min() >= 1 and encloses_area(corners):
            valid.append(corners.ravel().tolist())
    return tuple(valid)


def _corners(polygon: Any) -> np.ndarray:
    """A polygon, flat or in pairs -> its corners N2, without an incomplete one at the end."""
    parts = as_sequence(polygon)
    if parts is None:
        raise ValueError(f'expected a polygon x1, y1, x2, y2, x3, y3, ..., found {brief(polygon)}')
    flat: list[float] = []
    for part in parts:
        flat += read_numbers(
            [part] if as_sequence(part) is None else part, None, 'a polygon has x1, y1, x2, y2, ...'
        )
    return np.array(flat[: len(flat) // 2 * 2]).reshape(-1, 2)


def choose_styles(
    count: int, rng: np.random.Generator | None, shapes: Sequence[str] = tuple(PREPOSITIONS)
) -> list[tuple[str, Any]]:
    """A shape and a colour for each of `count` marks; marks of the same shape get different named colours.

    A shape that occurs once has a random, unnamed colour half of the time.
    """
    names = [*COLORS]
    if rng is None:
        return [(shapes[0], names[n % len(names)]) for n in range(count)]
    chosen = [shapes[n] for n in rng.integers(len(shapes), size=count)]
    unused = [names[n] for n in rng.permutation(len(names))]
    colors = [tuple(rgb) for rgb in rng.integers(256, size=(count, 3)).tolist()]
    named = [chosen.count(shape) > 1 or rng.random() < 0.5 for shape in chosen]
    return [
        (shape, unused.pop() if name and unused else rgb)
        for shape, name, rgb in zip(chosen, named, colors, strict=True)
    ]


def mark_phrase(mark: Mark, rng: np.random.Generator | None) -> str:
    """The phrase of a mark; with a generator, half of the time without 'the': 'within red rectangle'."""
    return mark.phrase if rng is None or rng.random() < 0.5 else mark.phrase.replace(' the ', ' ', 1)


def replace_box_tags(text: str, phrases: Sequence[str], where: str) -> str:
    """Replaces `<bboxN>`, N from 0, and `<bbox>`, the first one, by the phrases; `where` is for messages."""

    def phrase(match: re.Match[str]) -> str:
        number = match[1].lstrip('0') or '0'
        if len(number) > 9 or int(number) >= len(phrases):
            tag = brief(match[0])[1:-1]
            raise ValueError(f'{where} says {tag}, but the row has {len(phrases)} mark(s)')
        return phrases[int(number)]

    return re.sub(r'<bbox([0-9]*)>', phrase, text)


def open_marked(path: Path, marks: Sequence[Mark], seed: int | None = None) -> Image.Image:
    """Opens the picture in a file, with its marks drawn on it; `seed` fixes what the marks leave open."""
    image = open_image(path)
    return draw(image, [clamp_mark(mark, image.size) for mark in marks], seed) if marks else image


def clamp_mark(mark: Mark, size: tuple[int, int]) -> Mark:
    """The mark for a picture of (width, height) pixels, moved inside if it lies outside by rounding.

    ValueError if it lies outside by more, or is too small to be drawn.
    """
    if mark.units == 'pixel':

        def clamped(value: float, limit: int) -> float:
            nearest = min(max(value, 0.0), float(limit))
            return nearest if abs(value - nearest) <= TOLERANCE else value

        def pairs(values: Any) -> Any:
            return tuple((clamped(x, size[0]), clamped(y, size[1])) for x, y in values)

        box = None if mark.box is None else sum(pairs([mark.box[:2], mark.box[2:]]), ())
        mark = dataclasses.replace(
            mark, box=box, polygon=None if mark.polygon is None else [*map(pairs, mark.polygon)]
        )
    mark.region(size)
    return mark


def in_pixels(mark: Mark, size: tuple[int, int], resized: tuple[int, int] | None = None) -> Mark:
    """A mark on a picture of (width, height) pixels -> the mark in pixels of it, or of a resized copy."""
    limits = resized or size
    parts = [part for part in (mark.box, mark.point) if part] + [flatten(part) for part in mark.polygon or ()]
    relative = mark.units == 'relative' or (mark.units is None and max(map(max, parts)) <= 1)
    width, height = (1, 1) if relative else size
    scale = limits[0] / width, limits[1] / height

    def scaled(numbers: Sequence[float] | None) -> Sequence[float] | None:
        # rounding must not move a mark at the border outside
        return numbers and tuple(min(x * scale[n % 2], limits[n % 2]) for n, x in enumerate(numbers))

    polygons = mark.polygon and [[scaled(pair) for pair in part] for part in mark.polygon]
    return dataclasses.replace(
        mark, box=scaled(mark.box), point=scaled(mark.point), polygon=polygons, units='pixel'
    )


def bounds(mark: Mark) -> tuple[float, float, float, float]:
    """The box of a mark, or the smallest one around its polygons or its point."""
    if mark.box is not None:
        x1, y1, x2, y2 = mark.box
        return x1, y1, x2, y2
    x, y = zip(*(pair for polygon in mark.polygon or ((mark.point,),) for pair in polygon), strict=True)
    return min(x), min(y), max(x), max(y)
