"""Refuses picture files whose headers show that Pillow would need too much time or memory."""

import io
import os
import re
import struct
from collections.abc import Callable
from typing import IO

MAX_READ_WHOLE = 256 << 20  # bytes of a file that Pillow reads into memory at once
MAX_TEXT = 1 << 20  # bytes of a text chunk, the most that Pillow reads
MAX_PLAIN_TEXT = 64 << 20  # bytes of a plain-text picture, which is slow to decode
MAX_COMMENTS = 1000  # the maximum number in a plain-text picture
MAX_TAG_NUMBERS = 1 << 20  # numbers in one tag of a TIFF file, such as the offsets of its strips


class BoundedReader(io.BufferedReader):
    """A file whose `read` never requests more bytes than the file has.

    Python allocates the requested size before it reads, and Pillow requests whatever size a header states.
    """

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(-1 if size is None else min(size, self.size))


def check_file(file: IO[bytes], size: int, head: bytes) -> None:
    """Raises ValueError if a file of this size, which begins with `head`, would take too long to read."""
    for starts, limit in _CHECKS:
        if re.match(starts, head, re.DOTALL):
            limit(file, size)


def read_at(file: IO[bytes], start: int, count: int) -> bytes:
    """At most `count` bytes of a file, from the offset `start`."""
    file.seek(start)
    return file.read(count)


def _check_size(file: IO[bytes], size: int) -> None:
    if size > MAX_READ_WHOLE:
        raise ValueError(f'it has {size >> 20} MiB, expected at most {MAX_READ_WHOLE >> 20}')


def _check_plain(file: IO[bytes], size: int) -> None:
    """Limits the size of a PPM file's header, and of a file that stores its pixels as plain text."""
    if re.match(rb'P[123]\s', read_at(file, 0, 3)):
        if size > MAX_PLAIN_TEXT:
            raise ValueError(
                f'it is plain text, and has {size >> 20} MiB, expected at most {MAX_PLAIN_TEXT >> 20}'
            )
        if read_at(file, 0, size).count(b'#') > MAX_COMMENTS:
            raise ValueError(f'it has more than {MAX_COMMENTS} comments')
    token = rb'(?:\s|#[^\r\n]*[\r\n])+[^\s#]+'
    if size > MAX_TEXT and not re.match(rb'P\w+(?:' + token + rb'){3}', read_at(file, 0, MAX_TEXT)):
        raise ValueError('its header has no end')


def _check_packed(file: IO[bytes], size: int) -> None:
    """Limits the size of a compressed BMP file, which is slow to decode."""
    if size > MAX_PLAIN_TEXT // 4 and read_at(file, 30, 4) in (b'\1\0\0\0', b'\2\0\0\0'):
        raise ValueError(
            f'it is compressed, and has {size >> 20} MiB, expected at most {MAX_PLAIN_TEXT >> 22}'
        )


def _check_tags(file: IO[bytes], size: int) -> None:
    """Limits the numbers in a TIFF file's tags; tags that overlap could reuse the same bytes many times."""
    head = read_at(file, 0, 16)
    order = '<' if head.startswith(b'II') else '>'
    big = head[2:4] in (b'+\0', b'\0+')
    entry, counter, layout = (20, 'Q', 'HHQ') if big else (12, 'H', 'HHI')
    (offset,) = struct.unpack(order + 'Q', head[8:16]) if big else struct.unpack(order + 'I', head[4:8])
    counted = read_at(file, min(offset, size), struct.calcsize(order + counter))
    if len(counted) < struct.calcsize(order + counter):
        return
    (count,) = struct.unpack(order + counter, counted)
    if count > 65_535:
        raise ValueError(f'it has {count} tags')
    table = file.read(count * entry)
    total = 0  # bytes
    for at in range(0, len(table) - entry + 1, entry):
        tag, field_type, numbers = struct.unpack_from(order + layout, table, at)
        if field_type not in (1, 2, 7) and tag < 32_768 and numbers > MAX_TAG_NUMBERS:
            raise ValueError(f'its tag {tag} has {numbers} numbers')
        total += numbers * _WIDTHS.get(field_type, 0)
    if total > size + (1 << 16):
        raise ValueError('its tags are larger than the file')


_WIDTHS = dict(zip(range(1, 19), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), strict=True))
_CHECKS: tuple[tuple[bytes, Callable[[IO[bytes], int], None]], ...] = (
    (b'RIFF....WEBP', _check_size),
    (b'....ftyp', _check_size),
    (b'P[0-6fy]', _check_plain),
    (b'BM', _check_packed),
    (b'II[*+]\0|MM\0[*+]', _check_tags),
)
