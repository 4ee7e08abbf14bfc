"""Checks the values in a row of data: valid Unicode, bounded integers, limited nesting."""

import re
from typing import Any

from vipllava_jax.messages import brief

DEPTH = 64  # of nested lists and objects; the data sets have four
DIGITS = 4300  # of an integer: the most that Python converts to text
SURROGATE = re.compile(rb'\\u[dD][89a-fA-F]')  # an escaped surrogate, paired or lone


def parsed_is_safe(text: bytes) -> bool:
    """Whether a row's JSON in UTF-8 needs no `check`, which takes longer than parsing."""
    return not SURROGATE.search(text) and text.count(b'[') + text.count(b'{') <= DEPTH


def check(fields: dict[str, Any]) -> None:
    """Raises ValueError, naming the field, for a value of a row that would cause an error later.

    These are a text with half of a surrogate pair, which tokenizers reject, an integer of thousands of
    digits, and lists or objects that are nested too deeply to be serialized.
    """
    waiting: list[tuple[Any, str, int]] = [(fields, '', 0)]
    while waiting:
        value, name, depth = waiting.pop()
        if depth > DEPTH:
            raise ValueError(f'"{name.partition(".")[0]}" is nested more than {DEPTH} levels deep')
        if isinstance(value, str):
            _check_text(value, name)
        elif isinstance(value, int) and value.bit_length() > 3 * DIGITS:
            raise ValueError(f'"{name}" is {brief(value)}')
        elif isinstance(value, dict):
            for key, part in value.items():
                _check_text(str(key), name or 'the name of a field')
                waiting.append((part, f'{name}.{key}' if name else str(key), depth + 1))
        elif isinstance(value, list | tuple):
            waiting += [(part, f'{name}.{n}', depth + 1) for n, part in enumerate(value)]


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'"{name}" holds half of a surrogate pair, {text[error.start]!a}, at character {error.start}: '
            'write it in UTF-8'
        ) from None
