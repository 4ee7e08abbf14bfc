"""Error messages and other text for a terminal: printable, on one line, of bounded length.

Messages quote names and values from checkpoints and data files, which may hold anything.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

MESSAGE = 500  # maximum length of an error message in characters
SHOWN_CHANGES = 6  # settings that `describe_changes` lists
DIGESTS = {'data': 'other rows in the data', 'weights': 'other weights in the model'}  # not shown as values
CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')


class CheckpointError(ValueError):
    """An unusable checkpoint; the message is one line with the file, the fault and what to do about it."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str, limit: int = MESSAGE) -> str:
    """Untrusted text as one line of at most `limit` characters that is safe to show on a terminal.

    Runs of white space become one space. Characters that are not printable (control characters, changes of
    the writing direction, lone surrogates) are escaped. A longer text is shortened in the middle, so that
    the file name at its start and the advice at its end remain.
    """
    words = ' '.join(_cut(text, 10 * limit).split())
    return _cut(''.join(c if c.isprintable() else ascii(c)[1:-1] for c in words), limit)


def _cut(text: str, limit: int) -> str:
    """Text with an ellipsis in place of its middle if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = limit * 3 // 5
    return f'{text[:head]} … {text[len(text) - (limit - head - 3) :]}'


def safe_answer(text: str) -> str:
    """Generated text in which control characters other than newline and tab are escaped.

    The vocabulary is part of an untrusted checkpoint and could otherwise send commands to the terminal.
    """
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def safe_json(data: Any) -> str:
    """Data as JSON on one line, with non-ASCII letters as they are and control characters escaped."""
    text = json.dumps(data, ensure_ascii=False)
    return CONTROL.sub(lambda match: f'\\u{ord(match[0]):04x}', text)


def brief(value: Any, limit: int = 80) -> str:
    """A JSON value for a message: its repr if that is short, else its type and size."""
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
    """The type and message of an error of another library, short enough to be part of a longer message."""
    return printable(f'{type(error).__name__} {error}', 300)


def listed(names: Sequence[str], limit: int) -> str:
    """The first `limit` names and the number of the others: 'a, b and 7 more'."""
    more = len(names) - limit
    return ', '.join(names[:limit]) + (f' and {more} more' if more > 0 else '')


def amount(size: int) -> str:
    """A number of bytes in GB or MB, for a message."""
    return f'{size / 1e9:.2f} GB' if size >= 1e8 else f'{size / 1e6:.2f} MB'


def duration(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'


def describe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Lists the settings that differ, with their values before and now; '' if none does.

    The keys of DIGESTS hold digests, of which only the change is named.
    """
    names = [name for name in now if now[name] != before.get(name)]
    changes = [
        DIGESTS.get(name) or f'{name} was {_setting(before.get(name))} and is {_setting(now[name])}'
        for name in names
    ]
    shown = ', '.join(changes[:SHOWN_CHANGES])
    return shown + (f', and {len(names) - SHOWN_CHANGES} more' if len(names) > SHOWN_CHANGES else '')


def _setting(value: Any) -> str:
    if value is None:
        return 'not given'
    if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
        return printable(' '.join(value), 200)
    return printable(value, 200) if isinstance(value, str) else brief(value)
