"""Reads marks written as data: an object with the fields of a mark, or its text."""

from collections.abc import Mapping
from typing import Any

from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.messages import brief

FIELDS = ('shape', 'box', 'point', 'polygon', 'color', 'alpha', 'width', 'units', 'image')
UNITS = {'pixels': 'pixel', 'fractions': 'relative'}
MAX_IMAGE = 10**6  # the largest number of an image


def read_mark(value: Any) -> tuple[int, Mark]:
    """A mark's text, or its fields -> the index of its image, from 0, and the mark.

    Raises ValueError, naming the field, for anything else.
    """
    if isinstance(value, str):
        return parse_mark(value)
    if isinstance(value, Mapping):
        return mark_from_fields(value)
    raise ValueError(
        f'expected a mark as a string or an object, such as "point:40,60:red" or {{"shape": "point", '
        f'"point": [40, 60]}}, found {brief(value)}'
    )


def mark_from_fields(fields: Mapping[str, Any], shape: str | None = None) -> tuple[int, Mark]:
    """The fields of a mark, whose `image` counts from 1 -> the index of its image, from 0, and the mark.

    `shape` is that of a mark without one. Raises ValueError, naming the field, for invalid ones.
    """
    for name in fields:
        if name not in FIELDS:
            raise ValueError(f'unknown field {brief(name)}: a mark has {", ".join(FIELDS)}')
    given = {name: value for name, value in fields.items() if value is not None}
    image = given.pop('image', 1)
    if isinstance(image, bool) or not isinstance(image, int) or not 1 <= image <= MAX_IMAGE:
        raise ValueError(f'the mark is on image {brief(image)}: expected its number, from 1')
    if (shape := given.pop('shape', shape)) is None:
        raise ValueError('the mark has no "shape": give one, such as rectangle')
    units = given.get('units')
    if isinstance(units, str):
        given['units'] = UNITS.get(units, units)
    return image - 1, Mark(shape, **given)


def numbered(image: int, mark: Mark) -> Mark | str:
    """A mark on the image with this index, from 0 -> the mark, or its text with the number of the image."""
    return f'{image + 1}/{mark}' if image else mark
