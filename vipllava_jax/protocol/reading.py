"""Reads the JSON of a request, which may hold anything, into a Struct within limits of size and depth."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from vipllava_jax.data.row_values import MAX_DEPTH, check_values, may_have_surrogates
from vipllava_jax.messages import brief
from vipllava_jax.protocol.errors import ApiError

T = TypeVar('T', bound=Struct)
MAX_VALUES = 200_000  # commas and brackets in a request: a value of two bytes can take 200 in memory
MAX_IGNORED = 20  # ignored fields that are named
MAX_NAME = 64  # characters of such a name
WORDS = {
    'str': 'a string',
    'int': 'a whole number',
    'float': 'a number',
    'bool': 'true or false',
    'array': 'a list',
    'object': 'an object',
}  # by which messages call the types of JSON
PLACE = re.compile(r' - at `\$\.?(.*)`$')
MISSING = re.compile(r'Object missing required field `(\w+)`')


def parse_object(data: bytes) -> dict[str, Any]:
    """The JSON object in the body of a request; ApiError if it is not one, or too large once it is parsed."""
    openings = data.count(b'[') + data.count(b'{')
    if openings + data.count(b',') > MAX_VALUES:
        raise ApiError(400, f'the body holds more than {MAX_VALUES:,} values: send less at a time')
    try:
        fields = msgspec.json.decode(data)
    except RecursionError:
        raise ApiError(400, 'the body is nested too deeply') from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f'the body is not JSON in UTF-8: {error}') from None
    if not isinstance(fields, dict):
        raise ApiError(400, f'the body is {shown(fields)}: expected an object, such as {{"model": …}}')
    if openings > MAX_DEPTH or may_have_surrogates(data):
        try:
            check_values(fields)
        except ValueError as error:
            raise ApiError(400, str(error)) from None
    return fields


def to_struct(
    fields: dict[str, Any], kind: type[T], choices: Mapping[str, Sequence[str]]
) -> tuple[T, tuple[str, ...]]:
    """The fields of a request as a Struct, and the names of those that have no effect.

    `choices` lists what some fields may be, by the end of their paths, for messages. Raises ApiError, whose
    `param` is the path of the field, for a value of another type or out of range.
    """
    try:
        found = msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _error(str(error), fields, choices) from None
    names = []
    for name in _unknown(fields, found, ''):
        names.append(ascii(name)[1:-1][:MAX_NAME])
        if len(names) == MAX_IGNORED:
            break
    return found, tuple(names)


def _unknown(value: Any, found: Any, path: str) -> Iterator[str]:
    """The paths of the fields that a Struct, or those within it, have not taken; null counts as absent."""
    if isinstance(found, Struct) and isinstance(value, Mapping):
        known = _fields(type(found))
        tag = found.__struct_config__.tag_field
        for name, part in value.items():
            at = f'{path}.{name}' if path else name
            if name in known:
                yield from _unknown(part, getattr(found, known[name]), at)
            elif name != tag and part is not None:
                yield at
    elif isinstance(found, list) and isinstance(value, list):
        for n, (part, read) in enumerate(zip(value, found, strict=True)):
            yield from _unknown(part, read, f'{path}[{n}]')


@functools.cache
def _fields(kind: type[Struct]) -> dict[str, str]:
    """The names of the fields of a Struct, by those that they have in JSON."""
    return {field.encode_name: field.name for field in msgspec.structs.fields(kind)}


def _error(message: str, fields: dict[str, Any], choices: Mapping[str, Sequence[str]]) -> ApiError:
    """The error for a message of msgspec, such as 'Expected `int`, got `str` - at `$.n`'."""
    place = PLACE.search(message)
    path = place[1].replace('[...]', '') if place else ''
    reason = message[: place.start()] if place else message
    if missing := MISSING.match(reason):
        path = f'{path}.{missing[1]}' if path else missing[1]
        return ApiError(400, f'{path} is missing: give it', path)
    return ApiError(
        400, f'{path} is {shown(_value_at(fields, path))}: {_expected(reason, path, choices)}', path
    )


def _expected(reason: str, path: str, choices: Mapping[str, Sequence[str]]) -> str:
    """'Expected `int | null`, got `str`' -> 'expected a whole number'."""
    names = re.sub(r'\[\d+\]', '', path)
    for end, several in choices.items():
        if f'.{names}'.endswith(f'.{end}'):
            return f'choose {", ".join(several)}'
    expected = reason.partition(', got')[0].replace(' | null', '').replace(' | ', ' or ').replace('`', '')
    expected = re.sub(r'\b(' + '|'.join(WORDS) + r')\b', lambda match: WORDS[match[1]], expected)
    return expected[:1].lower() + expected[1:]


def shown(value: Any) -> str:
    """A value of JSON for a message."""
    if value is None or isinstance(value, bool):
        return 'null' if value is None else str(value).lower()
    return brief(value)


def _value_at(value: Any, path: str) -> Any:
    """The value at a path such as 'messages[0].role', as far as the path can be followed."""
    for name, index in re.findall(r'(\w+)|\[(\d+)\]', path):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and index:
            value = value[int(index)]
    return value
