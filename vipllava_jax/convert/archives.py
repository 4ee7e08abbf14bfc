"""Reads the directory of a ZIP archive as torch.save writes it: uncompressed entries that do not overlap.

Python's zipfile accepts more: here an entry that is compressed, that occurs twice, or whose bytes overlap
another's is an error, and so is a directory too large for a checkpoint.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

LARGEST_DIRECTORY = 1 << 22  # bytes; about 50,000 entries, and a checkpoint of 760 tensors has 60 KB
END, END64, LOCATOR64 = struct.Struct('<4s4H2LH'), struct.Struct('<4sQ2H2L4Q'), struct.Struct('<4sLQL')
ENTRY, LOCAL = struct.Struct('<4s6H3L5H2L'), struct.Struct('<4s5H3L2H')
COMMENT = 0xFFFF  # bytes that may follow the end record
ENCRYPTED = 1


class Entry(NamedTuple):
    """An entry's bytes in the archive."""

    name: str
    offset: int
    size: int
    crc: int


class ArchiveError(ValueError):
    """An archive that is damaged, or not as torch.save writes it."""


def read_directory(file: BinaryIO) -> dict[str, Entry]:
    """The entries of an archive, checked to lie within the file and not to overlap."""
    size = os.fstat(file.fileno()).st_size
    count, length, start = _end(file, size)
    if length > LARGEST_DIRECTORY:
        raise ArchiveError(f'the ZIP directory has {length} bytes, too many for a checkpoint')
    if start + length > size:
        raise ArchiveError('the ZIP directory ends beyond the file')
    entries: dict[str, Entry] = {}
    reached = 0
    for entry, header in sorted(_entries(_at(file, start, length)), key=lambda entry: entry[1]):
        if entry.name in entries:
            raise ArchiveError(f'two entries have the name {entry.name}')
        if header < reached:
            raise ArchiveError(f'the entry {entry.name} overlaps another')
        if header > start:
            raise ArchiveError(f'the entry {entry.name} begins after the ZIP directory')
        begin = _data_offset(file, header, entry.name)
        reached = begin + entry.size
        if reached > start:
            raise ArchiveError(f'the entry {entry.name} overlaps the ZIP directory')
        entries[entry.name] = entry._replace(offset=begin)
    if len(entries) != count:
        raise ArchiveError(f'the ZIP directory has {len(entries)} entries, but states {count}')
    return entries


def read_entry(file: BinaryIO, entry: Entry) -> bytes:
    """The bytes of an entry, checked against the directory's checksum."""
    data = _at(file, entry.offset, entry.size)
    if zlib.crc32(data) != entry.crc:
        raise ArchiveError(f'the checksum of {entry.name} does not match')
    return data


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise ArchiveError('the file ends too early')
    return data


def _end(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """The number of entries, the size and the offset of the directory, from the end record."""
    tail = _at(file, max(0, size - END.size - COMMENT), min(size, END.size + COMMENT))
    place = tail.rfind(b'PK\5\6')
    if place < 0 or place + END.size > len(tail):
        raise ArchiveError('no ZIP directory at its end')
    _, disk, other, _, count, length, start, comment = END.unpack_from(tail, place)
    if place + END.size + comment != len(tail):
        raise ArchiveError('bytes follow the ZIP directory')
    end = size - len(tail) + place
    if 0xFFFF in (count, disk) or 0xFFFFFFFF in (length, start):
        signature, _, at, _ = LOCATOR64.unpack(_at(file, max(0, end - LOCATOR64.size), LOCATOR64.size))
        if signature != b'PK\6\7' or at + END64.size > size:
            raise ArchiveError('its ZIP64 directory is missing')
        signature, _, _, _, disk, other, _, count, length, start = END64.unpack(_at(file, at, END64.size))
        if signature != b'PK\6\6':
            raise ArchiveError('its ZIP64 directory is missing')
    if disk or other:
        raise ArchiveError('archives in several parts are not supported')
    return count, length, start


def _entries(directory: bytes) -> Iterator[tuple[Entry, int]]:
    """The entries of a directory, each with the offset of its local header."""
    at = 0
    while at < len(directory):
        if at + ENTRY.size > len(directory) or directory[at : at + 4] != b'PK\1\2':
            raise ArchiveError('the ZIP directory is damaged')
        fields = ENTRY.unpack_from(directory, at)
        flags, method, crc, stored, size, n, m, k = (fields[i] for i in (3, 4, 7, 8, 9, 10, 11, 12))
        header = fields[-1]
        at += ENTRY.size
        raw, extra = directory[at : at + n], directory[at + n : at + n + m]
        at += n + m + k
        name = raw.decode('utf-8', 'backslashreplace')
        if 0xFFFFFFFF in (size, stored, header):
            size, stored, header = _zip64(extra, size, stored, header)
        if method or flags & ENCRYPTED or size != stored:
            raise ArchiveError('an entry is compressed or encrypted, which torch.save never does')
        if '..' in name.split('/') or name.startswith('/') or '\\' in name:
            raise ArchiveError(f'the entry {name} has a path that leads out of the archive')
        yield Entry(name, 0, size, crc), header


def _zip64(extra: bytes, *sizes: int) -> list[int]:
    """Replaces sizes and offsets that do not fit in 32 bits by their ZIP64 values."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from('<HH', extra, at)
        if tag == 1:
            values = iter(
                struct.unpack(f'<{length // 8}Q', extra[at + 4 : at + 4 + length // 8 * 8])
                if at + 4 + length // 8 * 8 <= len(extra)
                else ()
            )
            found = [next(values, None) if size == 0xFFFFFFFF else size for size in sizes]
            if None not in found:
                return [size for size in found if size is not None]
        at += 4 + length
    raise ArchiveError('the ZIP64 sizes of an entry are missing')


def _data_offset(file: BinaryIO, header: int, name: str) -> int:
    """Where the bytes of an entry begin, according to its local header."""
    signature, _, _, _, _, _, _, _, _, n, extra = LOCAL.unpack(_at(file, header, LOCAL.size))
    if signature != b'PK\3\4':
        raise ArchiveError(f'the entry {name} has no header')
    if _at(file, header + LOCAL.size, n).decode('utf-8', 'backslashreplace') != name:
        raise ArchiveError(f'the entry {name} has another name in its header')
    return header + LOCAL.size + n + extra
