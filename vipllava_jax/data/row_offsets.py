"""Locates the rows of a JSON list or a JSONL file of any size."""

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from vipllava_jax.files import BOM, check_encoding, check_regular
from vipllava_jax.messages import brief

WINDOW_BYTES = 1 << 20  # bytes of a list decoded at a time
MAX_ROW_BYTES = 1 << 26  # bytes of the largest row that is read; segmentations of a picture need a hundredth
SPACE = re.compile(rb'[ \t\r\n]*')
# A string, complete or cut off by the end of the file, or a bracket; possessive, because it would otherwise
# remember each character of a long string.
STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def is_list(path: Path) -> bool:
    """Whether a file is one JSON list rather than JSONL: its first character says so."""
    with path.open('rb') as file:
        first = file.read(1 << 16).removeprefix(BOM).lstrip()
        while not first and (more := file.read(1 << 16)):
            first = more.lstrip()
        return first.startswith(b'[')


def locate_rows(path: Path) -> Iterator[tuple[int, int, int]]:
    """The offset, the size and the line number, from 1, of each row of a file.

    Raises ValueError where a list holds something other than JSON objects, or where something follows it. The
    content of a JSONL line is not checked.
    """
    check_regular(path)
    with path.open('rb') as file:
        check_encoding(path, file.read(4))
    yield from _rows_of_list(path) if is_list(path) else _rows_of_lines(path)


def _rows_of_lines(path: Path) -> Iterator[tuple[int, int, int]]:
    start = line = 0
    with path.open('rb') as file:
        while text := file.readline(WINDOW_BYTES):
            line += 1
            skipped = len(BOM) if text.startswith(BOM) else 0  # also where files have been concatenated
            size, blank = len(text), not text[skipped:].strip()
            while not text.endswith(b'\n') and (text := file.readline(WINDOW_BYTES)):
                size, blank = size + len(text), blank and not text.strip()
            if not blank:
                yield start + skipped, size - skipped, line
            start += size


def _rows_of_list(path: Path) -> Iterator[tuple[int, int, int]]:
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        number, line, counted = 0, 1, 0
        window = _Window(data)
        at = _skip_space(data, data.find(b'[') + 1)
        try:
            while number or data[at : at + 1] != b']':
                line, counted = line + _count_newlines(data, counted, at), at
                if data[at : at + 1] != b'{':
                    raise ValueError(f'expected an object, found {_text_at(data, at)}')
                end = window.end(at)
                yield at, end - at, line
                at, number = _skip_space(data, end), number + 1
                if data[at : at + 1] == b']':
                    break
                if data[at : at + 1] != b',':
                    line += _count_newlines(data, counted, at)
                    raise ValueError(f'expected a comma or the end of the list, found {_text_at(data, at)}')
                at = _skip_space(data, at + 1)
        except ValueError as error:
            raise ValueError(
                f'{path}, row {number} (line {line}): not JSON ({error}); get an intact copy of it'
            ) from None
        rest = _skip_space(data, at + 1)
        if rest < len(data):
            line += _count_newlines(data, counted, rest)
            raise ValueError(
                f'{path}, line {line}: {_text_at(data, rest)} follows the list, and would not be read: '
                'expected one list in a file; pass several files separately'
            )


def _skip_space(data: mmap.mmap, at: int) -> int:
    """The offset of the next character that is not white space."""
    match = SPACE.match(data, at)
    return match.end() if match else at


def _count_newlines(data: mmap.mmap, start: int, end: int) -> int:
    """The number of newlines in a part of a file, counted in pieces to save memory."""
    pieces = range(start, end, WINDOW_BYTES)
    return sum(data[at : min(at + WINDOW_BYTES, end)].count(b'\n') for at in pieces)


def _text_at(data: mmap.mmap, at: int) -> str:
    return brief(data[at : at + 20]) if at < len(data) else 'the end of the file'


class _Window:
    """A part of a file, decoded as Latin-1: each byte is one character, and JSON's syntax is ASCII."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.start, self.text = data, 0, ''
        self.decoder = json.JSONDecoder()

    def end(self, at: int) -> int:
        """The end of the JSON object that starts at a byte; ValueError if it has none.

        An object that the decoder cannot read (too deeply nested, numbers too long, larger than a row may be)
        is skipped by its brackets: the error is reported when that row is read.
        """
        size = WINDOW_BYTES
        while True:
            try:
                return self.start + self.decoder.raw_decode(self.text, at - self.start)[1]
            except json.JSONDecodeError as error:
                cut = error.msg.startswith('Unterminated string') or error.pos > len(self.text) - 16
                if self.start <= at and (not cut or self.start + len(self.text) == len(self.data)):
                    raise ValueError(f'{error.msg} at byte {self.start + error.pos}') from None
            except IndexError:  # the object starts after this part
                pass
            except (ValueError, RecursionError):
                return self._closing_bracket(at)
            if size > MAX_ROW_BYTES:
                return self._closing_bracket(at)
            self.start = at
            self.text = self.data[at : at + size].decode('latin-1')
            size *= 2

    def _closing_bracket(self, at: int) -> int:
        """The end of the bracket that opens at a byte."""
        depth = 0
        for match in STRUCTURE.finditer(self.data, at):
            depth += {ord('{'): 1, ord('['): 1, ord('}'): -1, ord(']'): -1}.get(self.data[match.start()], 0)
            if not depth:
                return match.end()
        raise ValueError('the file ends within this row')
