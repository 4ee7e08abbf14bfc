"""Checks the values in a row of data: valid Unicode, bounded integers, limited nesting."""

import re
from typing import Any

from vipllava_jax.messages import brief

MAX_DEPTH = 64  # levels of nested lists and objects; the data sets have four
MAX_DIGITS = 4300  # digits of an integer: the most that Python converts
SURROGATE = re.compile(rb'\\u[dD][89a-fA-F]')  # an escaped surrogate, paired or lone


def is_safe_json(text: bytes) -> bool:
    """Whether a row's JSON in UTF-8 needs no `check_values`, which takes longer than parsing."""
    return not may_have_surrogates(text) and text.count(b'[') + text.count(b'{') <= MAX_DEPTH


def may_have_surrogates(text: bytes) -> bool:
    """Whether JSON has an escaped surrogate, which is half of a pair or lone."""
    return b'\\' in text and bool(SURROGATE.search(text))


def check_values(fields: dict[str, Any]) -> None:
    """Raises ValueError, naming the field, for a value of a row that would cause an error later.

    These are a string with half of a surrogate pair, which tokenizers reject, an integer of thousands of
    digits, and lists or objects that are nested too deeply to be serialized.
    """
    pending: list[tuple[Any, str, int]] = [(fields, '', 0)]
    while pending:
        value, name, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f'"{name.partition(".")[0]}" is nested more than {MAX_DEPTH} levels deep')
        if isinstance(value, str):
            _check_text(value, name)
        elif isinstance(value, int) and value.bit_length() > 3 * MAX_DIGITS:
            raise ValueError(f'"{name}" is {brief(value)}')
        elif isinstance(value, dict):
            for key, part in value.items():
                _check_text(str(key), name or 'the name of a field')
                pending.append((part, f'{name}.{key}' if name else str(key), depth + 1))
        elif isinstance(value, list | tuple):
            pending += [(part, f'{name}.{n}', depth + 1) for n, part in enumerate(value)]


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'"{name}" holds half of a surrogate pair, {text[error.start]!a}, at character {error.start}: '
            'write it in UTF-8'
        ) from None
