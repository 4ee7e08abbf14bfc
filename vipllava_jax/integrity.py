"""Checksums of arrays, and a fast check for NaN and infinity."""

import hashlib
from typing import Any

import numpy as np

WORDS = 512  # 64-bit words per row: 4 KiB
ROWS = 128  # rows summed at a time, few enough for the cache of a CPU
EXPONENTS: dict[str, tuple[type, Any]] = {
    'float32': (np.uint32, np.uint32(0x7F800000)),
    'float16': (np.uint16, np.uint16(0x7C00)),
    'bfloat16': (np.uint16, np.uint16(0x7F80)),
}  # the exponent bits, which are all set only in infinity and NaN


def checksum(array: Any) -> str:
    """The checksum of an array's bytes, in C order, as 16 hexadecimal digits.

    The bytes are read as little-endian 64-bit words in rows of 512, padded with zeros. The checksum is the
    BLAKE2b hash of the number of bytes and the sums of all rows and columns modulo 2**64. A change of up to
    three words always changes a sum. Summing takes a fraction of the time of reading; CRC-32 or a hash of all
    bytes would take longer than reading.
    """
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    end = data.size // (8 * WORDS) * (8 * WORDS)
    rest = np.zeros(8 * WORDS, np.uint8)
    rest[: data.size - end] = data[end:]
    hashed = hashlib.blake2b(data.size.to_bytes(8, 'little'), digest_size=8)
    columns = np.zeros(WORDS, '<u8')
    rows = data[:end].view('<u8').reshape(-1, WORDS)
    for block in (*(rows[i : i + ROWS] for i in range(0, len(rows), ROWS)), rest.view('<u8')[None]):
        hashed.update(block.sum(axis=1, dtype='<u8').data)
        columns += block.sum(axis=0, dtype='<u8')
    hashed.update(columns.data)
    return hashed.hexdigest()


def is_finite(array: Any) -> bool:
    """Whether an array holds neither infinity nor NaN."""
    array = np.asarray(array)
    if array.dtype.name not in EXPONENTS:
        return array.dtype.kind in 'iub' or bool(np.isfinite(array).all())
    word, exponent = EXPONENTS[array.dtype.name]
    bits: Any = np.ascontiguousarray(array).reshape(-1).view(word)
    blocks = (bits[i : i + WORDS * ROWS] for i in range(0, bits.size, WORDS * ROWS))
    return not any(((block & exponent) == exponent).any() for block in blocks)
