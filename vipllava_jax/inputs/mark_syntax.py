"""Parses marks written as text, such as rectangle:40,60,180,220:red."""

import re
from typing import Any

from vipllava_jax.inputs.marks import MAX_QUOTED, OPTIONS, Mark
from vipllava_jax.messages import brief, printable

SYNTAX = 'write SHAPE:X1,Y1,X2,Y2[:COLOR][:alpha=N][:width=N], such as rectangle:40,60,180,220:red'


def parse_mark(text: str) -> tuple[int, Mark]:
    """'2/rectangle:40,60,180,220:red:alpha=200' -> (1, the mark), where 1 is the index of the second image.

    Two numbers are a point, four a box, six or more a polygon; several places are joined by '+'.
    Raises ValueError, in one line that quotes the text, for anything else.
    """
    if not isinstance(text, str):
        raise ValueError(f'expected a mark as a string, found {brief(text)}: {SYNTAX}')
    number, slash, rest = text.partition('/')
    try:
        if slash and not re.fullmatch('0*[1-9][0-9]{0,5}', number[:20]):
            raise ValueError(f'expected the number of an image, from 1, before "/", found {brief(number)}')
        shape, *fields = (rest if slash else text).split(':')
        if not fields:
            raise ValueError(SYNTAX)
        shape = ' '.join(shape.replace('-', ' ').replace('_', ' ').split())
        return int(number) - 1 if slash else 0, Mark(
            shape, **_parse_places(fields[0]), **_parse_options(fields[1:])
        )
    except ValueError as error:
        raise ValueError(printable(f'mark {brief(text, MAX_QUOTED)}: {error}')) from None


def _parse_places(text: str) -> dict[str, Any]:
    """'40,60,180,220+90,90' -> the box and the point."""
    places: dict[str, Any] = {}
    for part in text.split('+'):
        found = [_parse_number(value) for value in part.split(',')]
        if len(found) % 2:
            raise ValueError(
                f'{brief(part)} has {len(found)} numbers: a point has two, a box four, a polygon six or more'
            )
        if len(found) in (2, 4):
            name = 'point' if len(found) == 2 else 'box'
            if name in places:
                raise ValueError(f'found a second {name}: write another mark for it')
            places[name] = found
        else:
            places.setdefault('polygon', []).append(found)
    return places


def _parse_number(text: str) -> float:
    """A number written with ASCII digits, without separators."""
    try:
        if text.isascii() and '_' not in text:
            return float(text)
    except ValueError:
        pass
    raise ValueError(f'expected numbers, found {brief(text)}: {SYNTAX}')


def _parse_options(fields: list[str]) -> dict[str, Any]:
    """['red', 'alpha=200'] -> the arguments of Mark."""
    found: dict[str, Any] = {}
    for field in fields:
        key, equals, value = field.partition('=')
        if not equals:
            key, value = 'color', field
        if key in found or key not in ('color', *OPTIONS):
            raise ValueError(
                f'unexpected {brief(field)}: after the coordinates come a color, {", ".join(OPTIONS)}, '
                'each at most once'
            )
        try:
            found[key] = OPTIONS.get(key, str)(value)
        except ValueError:
            raise ValueError(f'{key} must be a number, found {brief(value)}') from None
    return found
