"""The marks of regions: read from boxes, annotations and other forms, and told apart by their colours."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from vipllava_jax.answering.prompts import MARK
from vipllava_jax.data.coco import annotation_mark, is_annotation
from vipllava_jax.data.marking import clamp_mark
from vipllava_jax.inputs.coordinates import as_sequence, read_box
from vipllava_jax.inputs.mark_fields import mark_from_fields
from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.marks import COLORS, MAX_MARKS, PREPOSITIONS, Mark
from vipllava_jax.messages import brief

Mode = Literal['separate', 'together']
MODES: tuple[Mode, ...] = ('separate', 'together')
Region = Mark | str | Sequence[float] | Mapping[str, Any]


def region_marks(regions: Iterable[Region], shape: str, size: tuple[int, int]) -> list[Mark]:
    """The marks of regions of a picture of (width, height) pixels; the errors of `region_mark` name one."""
    if isinstance(regions, (Mark, str, bytes, Mapping)) or not isinstance(regions, Iterable):
        raise TypeError(f'the regions are {brief(regions)}: expected a list of boxes, Marks or annotations')
    marks = []
    for n, region in enumerate(regions):
        if n == MAX_MARKS:
            raise ValueError(f'there are more than {MAX_MARKS} regions: ask about fewer at a time')
        try:
            marks.append(region_mark(region, shape, size))
        except ValueError as error:
            raise ValueError(f'regions[{n}]: {error}') from None
    return marks


def region_mark(region: Region, shape: str, size: tuple[int, int]) -> Mark:
    """The mark of a region of a picture of (width, height) pixels, moved inside if it is outside by rounding.

    A region is a box (x1, y1, x2, y2), a Mark, its text or fields, or an annotation as in COCO; `shape` is
    that of all that state none. Raises ValueError for anything else, and for what cannot be drawn.
    """
    check_shape(shape)
    if isinstance(region, Mark):
        mark = region
    elif isinstance(region, str):
        image, mark = parse_mark(region)
        if image:
            raise ValueError(f'mark {mark.quoted()} is on image {image + 1}, but there is 1 image')
    elif isinstance(region, Mapping):
        mark = annotation_mark(region, shape, size) if is_annotation(region) else _from_fields(region, shape)
    elif as_sequence(region) is not None:
        box = read_box(region)
        mark = Mark(shape, box=box, units='pixel' if max(box) > 1 else None)
    else:
        raise ValueError(
            f'expected a box (x1, y1, x2, y2), a Mark or an annotation as in COCO, found {brief(region)}'
        )
    return clamp_mark(mark, size)


def check_options(question: str, mode: str, shape: str) -> None:
    """Raises TypeError or ValueError for a question without {mark}, or an unknown mode or shape."""
    if not isinstance(question, str):
        raise TypeError(f'the question is {brief(question)}: expected a string')
    found = [match[0] for match in MARK.finditer(question)]
    if not found:
        raise ValueError(
            f'the question {brief(question)} does not say which region it is about: write {{mark}} where the '
            'phrase for its mark belongs, as in "What is {mark}?"'
        )
    if others := [name for name in found if name not in ('{mark}', '{mark1}')]:
        raise ValueError(
            f'the question says {brief(others[0])[1:-1]}, but is about one region: write {{mark}}'
        )
    if mode not in MODES:
        raise ValueError(f'unknown mode {brief(mode)}: choose {" or ".join(MODES)}')
    check_shape(shape)


def check_shape(shape: str) -> None:
    if shape not in PREPOSITIONS:
        raise ValueError(f'unknown shape {brief(shape)}: choose {", ".join(PREPOSITIONS)}')


def _from_fields(fields: Mapping[str, Any], shape: str) -> Mark:
    """The mark with these fields, which are those of `Mark`, on the only image."""
    image, mark = mark_from_fields(fields, shape)
    if image:
        raise ValueError(f'mark {mark.quoted()} is on image {image + 1}, but there is 1 image')
    return mark


def told_apart(marks: Sequence[Mark]) -> list[Mark]:
    """At most nine marks with different named colours: their own, unless two have the same, or others."""
    colors = [mark.color for mark in marks]
    if len({*map(str, colors)}) == len(colors) and all(color in COLORS for color in colors):
        return [*marks]
    return [dataclasses.replace(mark, color=color) for mark, color in zip(marks, COLORS, strict=False)]
