"""Locates the tensors of a safetensors file.

The header is not trusted: every tensor is checked to lie within the file before any is read. The header's
size and number of entries are bounded, so that reading it takes little time and memory.
"""

import math
from pathlib import Path
from typing import Any, BinaryIO

from vipllava_jax.convert.tensors import (
    LONGEST_NAME,
    READABLE,
    Tensor,
    check_not_pointer,
    dense,
    open_regular,
)
from vipllava_jax.files import parse_bounded_json
from vipllava_jax.messages import CheckpointError, brief, one_line, printable

LONGEST_HEADER = 1 << 24  # bytes; the header of 760 tensors has 90 KB
MAX_OBJECTS = 100_000  # JSON objects in a header: one for each tensor
MAX_AXES = 64
LARGEST = (1 << 63) - 1  # the largest size or offset
TYPES = {  # numpy's names, and the bits of an element
    **{'F64': ('float64', 64), 'F32': ('float32', 32), 'F16': ('float16', 16), 'BF16': ('bfloat16', 16)},
    **{'I64': ('int64', 64), 'I32': ('int32', 32), 'I16': ('int16', 16), 'I8': ('int8', 8)},
    **{'U64': ('uint64', 64), 'U32': ('uint32', 32), 'U16': ('uint16', 16), 'U8': ('uint8', 8)},
    **{'F8_E4M3': ('float8_e4m3fn', 8), 'F8_E5M2': ('float8_e5m2', 8), 'F8_E8M0': ('float8_e8m0fnu', 8)},
    **{'F8_E4M3FNUZ': ('float8_e4m3fnuz', 8), 'F8_E5M2FNUZ': ('float8_e5m2fnuz', 8), 'BOOL': ('bool', 8)},
    **{'F4': ('float4_e2m1fn', 4), 'F6_E2M3': ('float6_e2m3fn', 6), 'F6_E3M2': ('float6_e3m2fn', 6)},
    **{'C64': ('complex64', 64)},
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, which they must fill without gaps."""
    size = path.stat().st_size
    with open_regular(path) as file:
        length, entries = _header(path, file, size)
    ends = []
    for name, entry in entries.items():
        try:
            ends.append((*_checked(path, name, entry), name))
        except CheckpointError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f'{path}: the header is corrupt: {brief(name)}: {one_line(error)}'
            raise CheckpointError(message) from None
    tensors, reached = {}, 0
    for begin, end, dtype, shape, name in sorted(ends):
        if begin != reached:
            problem = (
                f'{printable(name, 99)} begins at byte {begin}, but the tensor before it ends at {reached}'
            )
            raise CheckpointError(f'{path}: {problem}')
        tensors[name], reached = Tensor(path, 8 + length + begin, dtype, shape, dense(shape)), end
    if 8 + length + reached != size:
        problem = 'truncated' if 8 + length + reached > size else 'longer than its header says'
        raise CheckpointError(f'{path}: {problem}: expected {8 + length + reached} bytes, found {size}')
    return tensors


def _header(path: Path, file: BinaryIO, size: int) -> tuple[int, dict[str, Any]]:
    """The length of a file's header, and its entries by the names of the tensors."""
    start = file.read(8)
    check_not_pointer(path, start)
    length = int.from_bytes(start, 'little')
    if len(start) < 8 or length > size - 8:
        raise CheckpointError(f'{path}: truncated or corrupt: a header of {length} bytes in a file of {size}')
    if length > LONGEST_HEADER:
        raise CheckpointError(f'{path}: the header has {length} bytes, expected at most {LONGEST_HEADER}')
    try:
        header = parse_bounded_json(file.read(length), MAX_OBJECTS)
    except ValueError as error:
        raise CheckpointError(f'{path}: the header is corrupt: {one_line(error)}') from None
    header.pop('__metadata__', None)
    return length, header


def _checked(path: Path, name: str, entry: dict[str, Any]) -> tuple[int, int, str, tuple[int, ...]]:
    """An entry of a header -> the offsets of its first byte and its end, its dtype and shape."""
    code, shape, (begin, end) = entry['dtype'], entry['shape'], entry['data_offsets']
    if not isinstance(code, str) or not isinstance(shape, list):
        raise ValueError('the dtype is not a string, or the shape is not a list')
    if len(name) > LONGEST_NAME:
        raise ValueError(f'a name that is too long: {len(name)} characters')
    if len(shape) > MAX_AXES:
        raise ValueError(f'a shape with too many axes: {len(shape)}')
    if not all(type(n) is int and 0 <= n <= LARGEST for n in (*shape, begin, end)):
        raise ValueError(f'shape {brief(shape)} and offsets are not whole numbers of 63 bits')
    if code not in TYPES:
        raise CheckpointError(
            f'{path}: {brief(name)}: the type {brief(code)} is unknown; supported are {", ".join(READABLE)}'
        )
    dtype, bits = TYPES[code]
    size = -(-math.prod(shape) * bits // 8)
    if end - begin != size:
        taken = f'{size} bytes' if size <= LARGEST else 'more bytes than any file has'
        raise ValueError(f'{code} {brief(shape)} takes {taken}, but the offsets span {end - begin}')
    return begin, end, dtype, tuple(shape)
