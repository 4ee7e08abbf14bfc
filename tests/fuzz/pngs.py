"""Generates PNG files with correct checksums and unexpected chunks."""

import struct
import zlib

from hypothesis import strategies as st

from tests.fuzz.nasty import Draw

SIDES = (1, 2, 60, 90, 336, 1000, 65_535, 65_536, 100_000, 0, 2**31 - 1, 2**31, 2**32 - 1)
TYPES = (
    'tEXt',
    'zTXt',
    'iTXt',
    'iCCP',
    'eXIf',
    'tRNS',
    'PLTE',
    'gAMA',
    'pHYs',
    'acTL',
    'fcTL',
    'fdAT',
    'IDAT',
)
ORIENTATION = b'Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0'
CONTENTS = (
    *(
        b'',
        b'\0',
        b'x',
        b'a\0b',
        b'a\0\0' + zlib.compress(bytes(3 << 20)),
        b'a\0\0' + zlib.compress(bytes(300 << 20)),
    ),
    *(
        b'a\0' + b'x' * (2 << 20),
        b'\x1b[2J\0x',
        b'\0' * 768,
        b'\xff' * 26,
        *(bytes([0, n, 0, 0]) for n in (0, 3, 9, 255)),
    ),
)


def chunk(part: str, data: bytes) -> bytes:
    name = part.encode()
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


@st.composite
def pngs(draw: Draw) -> bytes:
    """A picture of one colour, with other chunks before and after its pixels."""
    width, height = draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES))
    depth, color, laced = (
        draw(st.sampled_from((8, 8, 16, 1, 4, 3))),
        draw(st.sampled_from((2, 0, 3, 4, 6, 7))),
        draw(st.integers(0, 2)),
    )
    head = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, laced)
    size = min(height * (1 + width * 8), 3 << 20)
    pixels = zlib.compress(bytes(draw(st.sampled_from((size, size // 2, 0)))))
    turned = st.integers(0, 10).map(lambda n: ('eXIf', ORIENTATION[6:] + bytes([n, 0, 0])))
    invalid = st.tuples(st.sampled_from(TYPES), st.sampled_from(CONTENTS))
    chunks = [('IDAT', pixels)]
    for other in draw(st.lists(st.one_of(invalid, turned), max_size=3)):
        chunks.insert(draw(st.integers(0, len(chunks))), other)
    end = chunk('IEND', b'') if draw(st.integers(0, 3)) else b''
    return b'\x89PNG\r\n\x1a\n' + chunk('IHDR', head) + b''.join(chunk(*part) for part in chunks) + end
