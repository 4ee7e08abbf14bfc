"""Where the rows of a JSON list or a JSONL file begin and end, however large it is."""

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

WINDOW = 1 << 20  # bytes of a list decoded at a time
BOM = b'\xef\xbb\xbf'
BETWEEN = re.compile(rb'[\s,]*')


def is_list(path: Path) -> bool:
    """Whether a file is one JSON list rather than JSONL: its first letter says so."""
    with path.open('rb') as file:
        return file.read(1 << 16).removeprefix(BOM).lstrip().startswith(b'[')


def spans(path: Path) -> Iterator[tuple[int, int, int]]:
    """The first byte, the size and the line, from 1, of each row of a file.

    ValueError says where a list is not one of JSON objects; what a line of JSONL holds is not looked at.
    """
    if is_list(path):
        yield from _listed(path)
        return
    start = 0
    with path.open('rb') as file:
        for line, text in enumerate(file, 1):
            skipped = len(BOM) if line == 1 and text.startswith(BOM) else 0
            if text[skipped:].strip():
                yield start + skipped, len(text) - skipped, line
            start += len(text)


def _listed(path: Path) -> Iterator[tuple[int, int, int]]:
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        number, line, counted = 0, 1, 0
        at = _next(data, data.find(b'[') + 1)
        window = _Window(data)
        while data[at : at + 1] != b']':
            line, counted = line + data[counted:at].count(b'\n'), at
            try:
                if data[at : at + 1] != b'{':
                    raise ValueError(f'expected an object, found {data[at : at + 20]!r}')
                end = window.end(at)
            except ValueError as error:
                raise ValueError(
                    f'{path}, row {number} (line {line}): not JSON ({error}); get a whole copy of it'
                ) from None
            yield at, end - at, line
            number, at = number + 1, _next(data, end)


def _next(data: mmap.mmap, at: int) -> int:
    """Past white space and commas."""
    match = BETWEEN.match(data, at)
    return match.end() if match else at


class _Window:
    """A part of a file as text. In Latin-1 each byte is one letter, and JSON's own are what they are."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.start, self.text = data, 0, ''
        self.decoder = json.JSONDecoder()

    def end(self, at: int) -> int:
        """Where the JSON value that begins at a byte ends; ValueError if it does not."""
        size = WINDOW
        while True:
            try:
                return self.start + self.decoder.raw_decode(self.text, at - self.start)[1]
            except (ValueError, IndexError):
                if self.start + len(self.text) == len(self.data) and self.start <= at:
                    raise
            self.start = at
            self.text = self.data[at : at + size].decode('latin-1')
            size *= 2
