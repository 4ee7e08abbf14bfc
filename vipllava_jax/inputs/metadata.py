"""Hides the metadata of picture files from Pillow.

Pillow reads all texts, colour profiles and comments of a file into memory, and refuses a PNG if one of them
is larger than a megabyte. Here Pillow gets a view of the file without them.
"""

import bisect
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import IO

from vipllava_jax.inputs.limits import MAX_TEXT, check_file, read_at

Range = tuple[int, int]  # the first byte of a part of a file, and the first after it

MAX_BLOCKS = 10_000  # blocks of metadata; cameras and editors write at most about a hundred
MAX_SCANS = 100  # of a progressive JPEG: encoders write about ten, and each is decoded over the whole picture
MARKERS_WITHOUT_LENGTH = b'\x01\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xd8'  # markers of JPEG without a length


class FileRanges(io.RawIOBase):
    """A file that consists of some ranges of another, one after the other."""

    def __init__(self, file: IO[bytes], ranges: Iterable[Range]) -> None:
        self._file = file
        self._ranges = [(start, stop) for start, stop in ranges if start < stop]
        self._starts = [0]  # the offset of each range in this file, and the end
        for start, stop in self._ranges:
            self._starts.append(self._starts[-1] + stop - start)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._starts[-1]}[whence]
        self._position = max(origin + offset, 0)
        return self._position

    def readinto(self, buffer) -> int:
        i = bisect.bisect_right(self._starts, self._position) - 1
        if i == len(self._ranges):
            return 0
        count = min(len(buffer), self._starts[i + 1] - self._position)
        self._file.seek(self._ranges[i][0] + self._position - self._starts[i])
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def without_metadata(file: IO[bytes]) -> IO[bytes]:
    """A picture file -> a file of the same picture without metadata.

    Transparency, and the orientation in Exif or XMP data, are kept. Raises ValueError if the structure of the
    file would take too long to read.
    """
    size = file.seek(0, io.SEEK_END)
    head = read_at(file, 0, 32)
    check_file(file, size, head)
    for start, ranges_of in _FORMATS:
        if head.startswith(start):
            ranges = ranges_of(file, size)
            file.seek(0)
            return io.BufferedReader(FileRanges(file, ranges), 1 << 16)
    file.seek(0)
    return file


def _too_many_blocks() -> ValueError:
    return ValueError(f'it has more than {MAX_BLOCKS} blocks of metadata')


def _png_ranges(file: IO[bytes], size: int) -> list[Range]:
    """The header, the palette, transparency and orientation, wherever they are; the pixels; the end.

    Of an animation only the first frame is kept.
    """
    first, pixels, seen = [(0, 8)], list[Range](), set[bytes]()
    at, blocks = 8, 0
    while at + 12 <= size:
        length, name = struct.unpack('>I4s', read_at(file, at, 8))
        stop = at + 12 + length
        if stop > size or not name.isalpha() or name == b'IEND':
            break
        if name == b'IDAT':
            if pixels and pixels[-1][1] == at:
                pixels[-1] = (pixels[-1][0], stop)
            else:
                pixels.append((at, stop))
        elif (
            name[:1].isupper() or name in (b'tRNS', b'eXIf') or _has_orientation(file, at, length, name, seen)
        ):
            first.append((at, stop))
        at, blocks = stop, blocks + (name != b'IDAT')
        if blocks > MAX_BLOCKS:
            raise _too_many_blocks()
    return [*first, *pixels, (at, size)]


def _has_orientation(file: IO[bytes], at: int, length: int, name: bytes, seen: set[bytes]) -> bool:
    """Whether a PNG text chunk is the first of a kind that may hold the orientation, and short enough."""
    if name not in (b'tEXt', b'zTXt', b'iTXt') or length > MAX_TEXT:
        return False
    keyword, _, text = read_at(file, at + 8, length).partition(b'\0')
    if keyword in seen or keyword not in (b'Raw profile type exif', b'XML:com.adobe.xmp'):
        return False
    seen.add(keyword)
    packed = text[1:] if name == b'zTXt' else text[2:].split(b'\0', 2)[-1] if text[:1] == b'\1' else b''
    try:
        inflating = zlib.decompressobj()
        return name == b'tEXt' or not packed or len(inflating.decompress(packed, MAX_TEXT)) < MAX_TEXT
    except zlib.error:
        return False


def _jpeg_ranges(file: IO[bytes], size: int) -> list[Range]:
    """All but comments and application data; JFIF, Adobe's and the first Exif and XMP data are kept."""
    kept, seen = [(0, 2)], set[bytes]()
    layers, progressive = 0, False
    at = 2
    for _ in range(MAX_BLOCKS):
        at = _find_next(file, rb'\xff[^\x00\xff]', at, size)
        head = read_at(file, at, 46)
        marker, length = head[1:2], int.from_bytes(head[2:4], 'big')
        if marker in MARKERS_WITHOUT_LENGTH and marker:
            length = 0
        elif marker == b'\xd9' or length < 2:  # the end, or damage
            return [*kept, (at, size)]
        if marker == b'\xda':
            if progressive or head[4:5] < bytes([layers]):
                _count_scans(file, at, size)
            return [*kept, (at, size)]
        if b'\xc0' <= marker <= b'\xcf' and marker not in b'\xc4\xc8\xcc' and len(head) > 9:
            layers, progressive = head[9], marker in b'\xc2\xc6\xca\xce'
        stop = at + 2 + length
        application = b'\xe0' <= marker <= b'\xef' or marker == b'\xfe'
        if not application or _is_needed(marker, head[4:], seen):
            kept.append((at, stop))
        at = stop
    raise _too_many_blocks()


def _is_needed(marker: bytes, content: bytes, seen: set[bytes]) -> bool:
    """Whether application data of a JPEG describes its colours, or is the first with an orientation."""
    if marker == b'\xe0' and content.startswith(b'JFIF'):
        return True
    if marker == b'\xee' and content.startswith(b'Adobe'):
        return True
    for prefix in (b'Exif\0\0', b'http://ns.adobe.com/xap/1.0/\0'):
        if marker == b'\xe1' and content.startswith(prefix) and prefix not in seen:
            seen.add(prefix)
            return True
    return False


def _count_scans(file: IO[bytes], at: int, size: int) -> None:
    """Raises ValueError if a JPEG has so many scans that decoding it takes too long."""
    scans = 0
    while at < size:
        head = read_at(file, at, 4)
        if head[1:2] == b'\xd9' or len(head) < 4:
            return
        scans += head[1:2] == b'\xda'
        if scans > MAX_SCANS:
            raise ValueError(f'it has more than {MAX_SCANS} scans')
        at = _find_next(file, rb'\xff[^\x00\xd0-\xd7\xff]', at + 2 + int.from_bytes(head[2:4], 'big'), size)


def _find_next(file: IO[bytes], pattern: bytes, at: int, size: int) -> int:
    """The offset of the next two bytes that match the pattern; the size if there are none."""
    if re.match(pattern, read_at(file, at, 2), re.DOTALL):
        return at
    while at < size - 1:
        block = read_at(file, at, 1 << 16)
        if found := re.search(pattern, block, re.DOTALL):
            return at + found.start()
        at += max(len(block) - 1, 1)
    return size


def _gif_ranges(file: IO[bytes], size: int) -> list[Range]:
    """All but comments and application data before the first frame."""
    head = read_at(file, 0, 13)
    palette = 3 << ((head[10] & 7) + 1) if len(head) == 13 and head[10] & 0x80 else 0
    at = 13 + palette
    kept = [(0, at)]
    for _ in range(MAX_BLOCKS):
        block = read_at(file, at, 2)
        if len(block) < 2 or block[:1] != b'!':
            return [*kept, (at, size)]
        stop = _after_blocks(file, at + 2)
        if block[1:] == b'\xf9':  # transparency
            kept.append((at, stop))
        at = stop
    raise _too_many_blocks()


def _after_blocks(file: IO[bytes], at: int) -> int:
    """The end of a sequence of blocks, each of which begins with its length."""
    file.seek(at)
    for _ in range(40 * MAX_BLOCKS):
        length = file.read(1)
        if not length or length == b'\0':
            return file.tell()
        file.seek(length[0], io.SEEK_CUR)
    raise _too_many_blocks()


_FORMATS: tuple[tuple[bytes, Callable[[IO[bytes], int], list[Range]]], ...] = (
    (b'\x89PNG\r\n\x1a\n', _png_ranges),
    (b'\xff\xd8\xff', _jpeg_ranges),
    (b'GIF8', _gif_ranges),
)
