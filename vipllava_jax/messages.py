"""Error messages and other text for a terminal: printable, on one line, of bounded length.

Much of what a message quotes comes from a checkpoint or a data file, which may hold anything.
"""

import json
import math
import re
from typing import Any

MESSAGE = 500  # characters of an error message, at most
CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')


class CheckpointError(ValueError):
    """What is wrong with a checkpoint, in one printable line that names the file and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str, limit: int = MESSAGE) -> str:
    """Text from anywhere as one line of at most `limit` characters that is safe to show on a terminal.

    Runs of white space become one space. Characters that are not printable (control characters, changes of
    the writing direction, lone surrogates) become their escapes. A longer text loses its middle, so that
    the file's name at its start and the advice at its end stay.
    """
    words = ' '.join(_cut(text, 10 * limit).split())
    return _cut(''.join(c if c.isprintable() else ascii(c)[1:-1] for c in words), limit)


def _cut(text: str, limit: int) -> str:
    """Text without its middle if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = limit * 3 // 5
    return f'{text[:head]} … {text[len(text) - (limit - head - 3) :]}'


def safe_answer(text: str) -> str:
    """Generated text in which control characters other than newline and tab become their escapes.

    A model's vocabulary comes with its checkpoint, and could otherwise send commands to the terminal.
    """
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def safe_json(data: Any) -> str:
    """A JSON text on one line, its letters as they are, its control characters as JSON's escapes."""
    text = json.dumps(data, ensure_ascii=False)
    return CONTROL.sub(lambda match: f'\\u{ord(match[0]):04x}', text)


def brief(value: Any, limit: int = 80) -> str:
    """A value of JSON as it is shown in a message: its repr if that is short, else its type and size."""
    if isinstance(value, (str, bytes)):
        return printable(repr(value[:limit]) + ('…' if len(value) > limit else ''), limit + 8)
    if isinstance(value, int) and value.bit_length() > 200:
        return f'a whole number of {int(math.log10(abs(value))) + 1} digits'
    if isinstance(value, (list, tuple, dict, set)):
        entries = len(value)
        if entries > 16 or any(isinstance(part, (list, tuple, dict, set)) for part in value):
            return f'{"an object" if isinstance(value, dict) else "a list"} of {entries} entries'
        if isinstance(value, dict):
            return '{' + ', '.join(f'{brief(k, 16)}: {brief(v, 16)}' for k, v in value.items()) + '}'
        return '[' + ', '.join(brief(part, 16) for part in value) + ']'
    return printable(repr(value), limit)


def one_line(error: BaseException) -> str:
    """An error of any library, its type and what it says, short enough to be part of one of ours."""
    return printable(f'{type(error).__name__} {error}', 300)


def amount(size: int) -> str:
    """A number of bytes as it is shown in a message."""
    return f'{size / 1e9:.2f} GB' if size >= 1e8 else f'{size / 1e6:.2f} MB'
