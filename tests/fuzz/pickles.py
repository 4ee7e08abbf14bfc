"""Generates pickle programs, and archives like those of torch.save around such programs."""

import io
import itertools
import pickle
import pickletools
import struct
import zipfile
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.convert.files import integer, pickled, storage, string, tensor, tuple_of, write_archive
from tests.fuzz.nasty import Draw, damaged

NAMES = ('os\nsystem', 'builtins\neval', 'torch\nFloatStorage', 'torch._utils\n_rebuild_tensor_v2')
NAMES += ('torch._utils\n_rebuild_parameter', 'collections\nOrderedDict', 'builtins\ngetattr', 'x\x1b[31m\ny')
ARGUMENTS = {
    'uint1': (b'\0', b'\1', b'\xff'),
    'uint2': (b'\0\0', b'\xff\xff'),
    'uint4': (bytes(4), b'\1\0\0\0', b'\xff\xff\xff\x7f', b'\xff\xff\xff\xff'),
    'uint8': (bytes(8), b'\xff\xff\xff\xff\xff\xff\xff\x7f'),
    'int4': (bytes(4), b'\xff\xff\xff\xff', b'\0\0\0\x80'),
    'float8': (bytes(8), struct.pack('>d', float('nan')), struct.pack('>d', 1e308)),
    'decimalnl_short': (b'0\n', b'-1\n', b'999999999999\n', b'x\n'),
    'decimalnl_long': (b'0L\n', b'9' * 5000 + b'L\n'),
    'floatnl': (b'1.5\n', b'nan\n', b'1e999\n'),
    'stringnl': (b"'x'\n", b"'\\x1b'\n", b'x\n'),
    'stringnl_noescape': (b'x\n', b'\x1b[2J\n'),
    'unicodestringnl': (b'x\n', b'\\ud800\n'),
    'stringnl_noescape_pair': tuple(name.encode() + b'\n' for name in NAMES),
    'long1': (b'\0', b'\1\xff', b'\x08' + bytes(7) + b'\x80', b'\xff' + b'\x7f' * 255),
    'long4': (bytes(4), b'\xff\xff\xff\xff', b'\4\0\0\0\1\2\3\4'),
}
COUNTED = {'1': '<B', '4': '<I', '8': '<Q', 'unicodestring8': '<Q'}
DOUBLED = b')' + b'2\x86' * 60  # a tuple of two of itself, sixty times: 2**60 leaves
NESTED = b')' + b'\x85' * 300_000
FIELDS = ('file', 'offset', 'dtype', 'shape', 'strides', '__class__', '__dict__', 'key', 'items')
BROKEN = (
    *(string('/etc/passwd'), string('float32'), integer(-1), integer(10**9), b'N', b'\x85', DOUBLED),
    *(tuple_of(integer(-100_000_000)), tuple_of(integer(1 << 40))),
)
INTO = [b'}' + string(field) + value + b'sb' for field in FIELDS for value in BROKEN]  # for BUILD


def encodings(op: pickletools.OpcodeInfo) -> list[bytes]:
    """The encodings of an opcode with each of some arguments."""
    code = op.code.encode('latin-1')
    if op.arg is None:
        return [code]
    if op.arg.name in ARGUMENTS:
        return [code + argument for argument in ARGUMENTS[op.arg.name]]
    form = next(COUNTED[end] for end in COUNTED if op.arg.name.endswith(end))
    largest = (1 << 8 * struct.calcsize(form)) - 1
    texts = [(1, b'x'), (5, b'\x1b[31m'), (3, b'\xed\xa0\x80'), (largest, b'x'), (0, b'')]
    return [code + struct.pack(form, size) + data for size, data in texts]


OPERATIONS = [bytes for op in pickletools.opcodes for bytes in encodings(op)]
PIECES = st.one_of(st.sampled_from(OPERATIONS), st.sampled_from([DOUBLED, NESTED]), st.sampled_from(INTO))
TENSORS = {
    'model.w': tensor(storage('0', 'FloatStorage', 12), (3, 4), (4, 1)),
    'model.b': tensor(storage('0', 'FloatStorage', 12), (3,), (2,), 1),
    'model.h': tensor(storage('1', 'BFloat16Storage', 4), (2, 2), (1, 2)),
}
STORAGES = {'0': np.arange(12, dtype=np.float32).tobytes(), '1': bytes(8)}
VALID = pickled(TENSORS)


def archive(program: bytes, storages: dict[str, bytes] = STORAGES, **part: Any) -> bytes:
    file: Any = io.BytesIO()
    write_archive(file, program, storages, **part)
    return file.getvalue()


@st.composite
def programs(draw: Draw) -> bytes:
    """Opcodes in random order, or a valid program with some opcodes removed, repeated or inserted."""
    if draw(st.booleans()):
        return b''.join(draw(st.lists(PIECES, min_size=1, max_size=30))) + b'.'
    starts = [at for *_, at in pickletools.genops(VALID)] + [len(VALID)]
    parts = [VALID[a:b] for a, b in itertools.pairwise(starts)]
    if draw(st.booleans()):  # a field of the result of a call
        calls = [at for at, part in enumerate(parts, 1) if part == pickle.REDUCE]
        parts.insert(draw(st.sampled_from(calls)), draw(st.sampled_from(INTO)))
        return b''.join(parts)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(parts) - 1))
        size = draw(st.integers(0, 4))
        between = draw(st.sampled_from(('none', 'piece', 'again')))
        new = [draw(PIECES)] if between == 'piece' else parts[at : at + 8] * (between == 'again')
        parts[at : at + size] = new
        parts = parts or [b'.']
    return b''.join(parts)


@st.composite
def archives(draw: Draw) -> bytes:
    """A `.bin` file: a program in an archive, in which other parts or bytes may be changed."""
    part = draw(st.sampled_from(('program', 'program', 'program', 'entries', 'bytes')))
    if part == 'program':
        return archive(draw(programs()))
    if part == 'bytes':
        return draw(damaged(archive(VALID)))
    names = ('0', '../../x', '0/', '\x1b[31m', 'x' * 5000, '1')
    data = st.sampled_from((b'', bytes(47), bytes(48), bytes(100_000)))
    storages = draw(st.dictionaries(st.sampled_from(names), data, max_size=3))
    return archive(
        VALID, storages, compression=draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2)))
    )
