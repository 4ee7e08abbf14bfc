"""ZIP archives of `.bin` files: those of torch.save are read, manipulated entries are errors."""

import contextlib
import io
import struct
import time
import zipfile

import numpy as np
import pytest

from tests.convert.files import pickled, storage, tensor, write_bin
from vipllava_jax.convert.archives import LARGEST_DIRECTORY
from vipllava_jax.convert.pickles import read_pickle
from vipllava_jax.convert.tensors import read_tensor
from vipllava_jax.messages import CheckpointError

PROGRAM = pickled({'x': tensor(storage('0', 'FloatStorage', 4), (4,), (1,))})
DATA = np.arange(4, dtype=np.float32).tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'pytorch_model.bin'


def write(path, *entries, comment=b''):
    with zipfile.ZipFile(path, 'w') as archive, pytest.MonkeyPatch.context() as patch:
        patch.setattr('warnings.warn', lambda *_, **__: None)  # zipfile warns of duplicate names
        for name, data in entries:
            archive.writestr(name, data)
        archive.comment = comment


def message(path) -> str:
    with pytest.raises(CheckpointError) as raised:
        read_pickle(path)
    assert str(raised.value).startswith(f'{path}: ')
    return str(raised.value)


USUAL = (('archive/data.pkl', PROGRAM), ('archive/data/0', DATA))


@pytest.mark.parametrize('root', ['archive/', '', 'a..b/', 'modèle/', 'a b/'])
@pytest.mark.parametrize('comment', [b'', b'a comment'])
def test_any_root_folder_is_accepted(path, root, comment):
    write(path, (root + 'data.pkl', PROGRAM), (root + 'data/0', DATA), comment=comment)
    found = read_pickle(path)['x']
    np.testing.assert_array_equal(read_tensor(found, memoryview(bytearray(16))), np.arange(4))


@pytest.mark.parametrize(
    ('more', 'expected'),
    [
        ([('archive/data/0', DATA)], 'two entries have the name archive/data/0'),
        ([('archive/data.pkl', PROGRAM)], 'two entries have the name archive/data.pkl'),
        ([('other/data.pkl', PROGRAM)], r'several data.pkl'),
        ([('data.pkl', PROGRAM)], r'several data.pkl'),
        ([('../data/1', DATA)], 'the entry ../data/1 has a path that leads out of the archive'),
        ([('archive/../../x', DATA)], 'has a path that leads out of the archive'),
        ([('/etc/passwd', DATA)], 'has a path that leads out of the archive'),
        ([('a\\b', DATA)], 'has a path that leads out of the archive'),
        ([('archive/\x1b[31mred', DATA)] * 2, r'two entries have the name archive/\x1b[31mred'),
        ([('archive/constants.pkl', b'')], 'a TorchScript program'),
        ([('archive/byteorder', b'big')], 'big-endian'),
        ([('archive/byteorder', b'little' * 1000)], 'big-endian'),
    ],
)
def test_unusual_archive_entries_are_refused(path, more, expected):
    write(path, *USUAL, *more)
    assert expected in message(path)


def directory(path) -> tuple[bytearray, int]:
    data = bytearray(path.read_bytes())
    return data, data.index(b'PK\1\2')


def test_an_entry_inside_another_is_refused(path):
    """An archive nested as the bytes of an entry, with a directory that refers to a header inside it."""
    inner = io.BytesIO()
    write(inner, ('archive/data/1', DATA))
    write(path, ('archive/data/0', inner.getvalue()), ('archive/data.pkl', PROGRAM), ('archive/data/1', DATA))
    data, _ = directory(path)
    entry = data.rindex(b'PK\1\2', 0, data.rindex(b'archive/data/1'))
    inside = data.index(inner.getvalue())
    struct.pack_into('<I', data, entry + 42, inside)
    struct.pack_into('<III', data, entry + 16, 0, len(DATA), len(DATA))
    path.write_bytes(data)
    assert 'the entry archive/data/1 overlaps another' in message(path)


def test_two_entries_of_the_same_bytes_are_refused(path):
    write(path, *USUAL)
    data, start = directory(path)
    second = data.index(b'PK\1\2', start + 4)
    data[second + 42 : second + 46] = data[start + 42 : start + 46]
    path.write_bytes(data)
    assert 'overlaps another' in message(path)


def test_an_entry_with_two_names_is_refused(path):
    write(path, *USUAL)
    data, _ = directory(path)
    data[data.index(b'archive/data/0')] ^= 1
    path.write_bytes(data)
    assert 'the entry archive/data/0 has another name in its header' in message(path)


@pytest.mark.parametrize(
    ('offset', 'size', 'value'),
    [
        (10, 'H', 8),  # the compression method: deflated
        (8, 'H', 1),  # encrypted
        (20, 'I', 5),  # the compressed size
        (24, 'I', 1 << 31),  # the uncompressed size
        (42, 'I', 1 << 31),  # the offset of the local header
        (42, 'I', 5),
        (28, 'H', 9999),  # the length of the name
        (30, 'H', 9999),
        (32, 'H', 9999),
        (0, 'I', 0),
        (24, 'I', 0xFFFFFFFF),  # a ZIP64 marker without the 64-bit sizes
    ],
)
def test_every_field_of_a_directory_is_checked(path, offset, size, value):
    write(path, *USUAL)
    data, start = directory(path)
    struct.pack_into(f'<{size}', data, start + offset, value)
    path.write_bytes(data)
    message(path)


@pytest.mark.parametrize(
    ('offset', 'size', 'value'),
    [
        (4, 'H', 1),  # the number of this disk
        (6, 'H', 1),
        (10, 'H', 1),  # the number of entries
        (10, 'H', 3),
        (10, 'H', 0xFFFF),  # a ZIP64 marker without the ZIP64 end record
        (12, 'I', 0),  # the length of the directory
        (12, 'I', 1 << 31),
        (16, 'I', 0),  # the offset of the directory
        (16, 'I', 1 << 31),
        (20, 'H', 7),  # the length of the comment
    ],
)
def test_every_field_of_the_end_record_is_checked(path, offset, size, value):
    write(path, *USUAL)
    data, _ = directory(path)
    struct.pack_into(f'<{size}', data, len(data) - 22 + offset, value)
    path.write_bytes(data)
    message(path)


def test_a_pickle_with_a_wrong_checksum_is_refused(path):
    write(path, *USUAL)
    data, _ = directory(path)
    data[data.index(PROGRAM) + 8] ^= 1
    path.write_bytes(data)
    assert 'the checksum of archive/data.pkl does not match' in message(path)


def test_zip64_entries_are_read(path, monkeypatch):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in USUAL:
            with archive.open(name, 'w', force_zip64=True) as file:
                file.write(data)
    assert read_pickle(path)['x'].shape == (4,)
    monkeypatch.setattr(zipfile, 'ZIP64_LIMIT', 0)  # all sizes and offsets in 64 bits
    monkeypatch.setattr(zipfile, 'ZIP_FILECOUNT_LIMIT', 0)
    write(path, *USUAL)
    data = bytearray(path.read_bytes())
    struct.pack_into('<HHII', data, len(data) - 14, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    path.write_bytes(data)
    assert read_pickle(path)['x'].shape == (4,)
    for place, expected in ((data.rindex(b'PK\6\7'), 'ZIP64'), (data.rindex(b'PK\6\6'), 'ZIP64')):
        path.write_bytes(data[:place] + b'XXXX' + data[place + 4 :])
        assert expected in message(path)
    at = data.rindex(b'PK\6\7') + 8
    for place in (0, len(data), 1 << 63):
        struct.pack_into('<Q', data, at, place)
        path.write_bytes(data)
        assert 'ZIP64' in message(path)


@pytest.mark.parametrize('place', [0, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize('field', [42, 24, 20])
def test_every_64_bit_field_of_a_directory_is_checked(path, place, field):
    """The offset of an entry's header, and its uncompressed and compressed size, in the ZIP64 extra field."""
    write(path, *USUAL)
    data, start = directory(path)
    name = struct.unpack_from('<H', data, start + 28)[0]
    struct.pack_into('<I', data, start + field, 0xFFFFFFFF)
    struct.pack_into('<H', data, start + 30, 12)
    data[start + 46 + name : start + 46 + name] = struct.pack('<HHQ', 1, 8, place)
    struct.pack_into('<I', data, len(data) - 10, len(data) - 22 - start)
    path.write_bytes(data)
    if (field, place) == (42, 0):  # the first entry's header is at offset 0
        assert read_pickle(path)['x'].shape == (4,)
    else:
        message(path)


def test_a_directory_that_is_too_large_is_refused(path):
    """A sparse file that claims 4 GB of entries is refused before it is read."""
    length = 4_000_000_000
    with open(path, 'wb') as file:
        file.write(b'PK\3\4')
        file.truncate(length)
        file.seek(0, 2)
        file.write(struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 9, 9, length - 4, 4, 0))
    began = time.thread_time()
    assert f'the ZIP directory has {length - 4} bytes' in message(path)
    assert time.thread_time() - began < 1


def test_many_entries_are_read(path):
    entries = LARGEST_DIRECTORY // 47
    names = [f'{i}'.encode() for i in range(entries)]
    local = b'PK\3\4' + bytes(22)
    start, parts, listed = 0, [], []
    for name in names:
        parts.append(local + struct.pack('<HH', len(name), 0) + name)
        listed.append(b'PK\1\2' + bytes(24) + struct.pack('<HHHHHII', len(name), 0, 0, 0, 0, 0, start) + name)
        start += len(parts[-1])
    data = b''.join(listed)
    data = data[:LARGEST_DIRECTORY]
    path.write_bytes(
        b''.join(parts) + data + struct.pack('<4s4H2LH', b'PK\5\6', 0, 0, 0, 0, len(data), start, 0)
    )
    began = time.thread_time()
    message(path)
    assert time.thread_time() - began < 10


@pytest.mark.parametrize('at', range(0, 400, 7))
def test_damage_is_reported_or_harmless(path, at):
    write_bin(path, {'x': np.arange(4, dtype=np.float32)})
    data = bytearray(path.read_bytes())
    data[-1 - at % len(data)] ^= 0xFF
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        read_tensor(read_pickle(path)['x'], memoryview(bytearray(16)))
