"""Safetensors, shards and indexes: the right bytes, or an error in one line that names the file."""

import errno
import json
import os
import socket
import time

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.convert.files import write_bin, write_safetensors
from vipllava_jax.convert.safetensors_files import read_safetensors
from vipllava_jax.convert.tensors import Tensor, read_tensor
from vipllava_jax.convert.torch_files import INDEXED, is_torch_folder, open_checkpoint
from vipllava_jax.messages import CheckpointError

X, Y = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)
NAMES = ('model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors')


def bytes_of(tensor):
    return np.array(read_tensor(tensor, memoryview(bytearray(1 << 12))))


def message(call, *args) -> str:
    with pytest.raises(CheckpointError) as raised:
        call(*args)
    assert '\n' not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def shards(tmp_path):
    """A folder of two shards with one tensor each, and its index as a dict."""
    for name, tensors in zip(NAMES, ({'x': X}, {'y': Y}), strict=True):
        write_safetensors(tmp_path / name, tensors)
    index = {'metadata': {'total_size': 32}, 'weight_map': {'x': NAMES[0], 'y': NAMES[1]}}
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    return tmp_path, index


@given(
    st.sampled_from(['float32', 'float16', 'bfloat16']), st.lists(st.integers(0, 5), max_size=4), st.data()
)
@settings(max_examples=30, deadline=None)
def test_the_tensors_of_written_files_are_read(tmp_path_factory, dtype, shape, data):
    stored = np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
    raw = data.draw(
        st.binary(
            min_size=stored.itemsize * int(np.prod(shape)), max_size=stored.itemsize * int(np.prod(shape))
        )
    )
    array = np.frombuffer(raw, stored).reshape(shape)
    path = tmp_path_factory.mktemp('file') / 'model.safetensors'
    write_safetensors(path, {'before': Y, 'it': array, 'after': X})
    found = bytes_of(read_safetensors(path)['it'])
    assert (found.dtype, found.shape, found.tobytes()) == (stored, tuple(shape), raw)


def test_shards_are_read_as_one_checkpoint(shards):
    tensors = open_checkpoint(shards[0])
    np.testing.assert_array_equal(bytes_of(tensors['x']), X)
    np.testing.assert_array_equal(bytes_of(tensors['y']), Y)


def test_safetensors_take_precedence_over_bin(tmp_path):
    write_safetensors(tmp_path / 'model.safetensors', {'x': X})
    write_bin(tmp_path / 'pytorch_model.bin', {'x': Y})
    assert open_checkpoint(tmp_path)['x'].dtype == 'float32'


@pytest.mark.parametrize('keep', [0, 5, 20, -1])
def test_a_truncated_file_is_an_error(tmp_path, keep):
    path = tmp_path / 'model.safetensors'
    write_safetensors(path, {'x': X})
    path.write_bytes(path.read_bytes()[:keep])
    assert message(open_checkpoint, tmp_path).startswith(f'{path}: truncated')


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / 'model.safetensors'
    write_safetensors(path, {'x': X})
    tensor = read_safetensors(path)['x']
    path.write_bytes(path.read_bytes()[:-1])
    assert message(bytes_of, tensor) == f'{path}: became shorter while it was read'


@pytest.mark.parametrize(
    ('changed', 'expected'),
    [
        ({'dtype': 'F7'}, "the type 'F7' is unknown"),
        ({'dtype': 'F16'}, r'F16 \[2, 3\] takes 12 bytes, the offsets span 24'),
        ({'shape': [2, 4]}, 'takes 32 bytes'),
        ({'shape': [-2, -3]}, 'not whole numbers'),
        ({'shape': [2.0, 3]}, 'not whole numbers'),
        ({'shape': [1 << 62, 1 << 62]}, 'takes .* bytes'),
        ({'data_offsets': [8, 32]}, 'begins at byte'),
        (
            {'data_offsets': [1 << 40, (1 << 40) + 24]},
            'y begins at byte 24, the tensor before it ends at 0',
        ),
        ({'data_offsets': [24, 0]}, 'span -24'),
        ({'data_offsets': [0]}, 'the header is corrupt'),
        ({'data_offsets': None}, 'the header is corrupt'),
        ({'shape': None}, 'the header is corrupt'),
        ({'dtype': []}, 'the header is corrupt'),
    ],
)
def test_corrupt_headers_are_errors(tmp_path, changed, expected):
    path = tmp_path / 'model.safetensors'
    write_safetensors(path, {'x': X, 'y': Y}, x=changed)
    with pytest.raises(CheckpointError, match=expected) as error:
        open_checkpoint(tmp_path)
    assert str(error.value).startswith(f'{path}: ')


@pytest.mark.parametrize(
    'header', [b'{', b'[]', b'{"x": 3}', b'\xff\xff', b'{"x": {}}', b'[' * 9999, b'{"a": 1, "a": 2}']
)
def test_invalid_headers_are_errors(tmp_path, header):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(len(header).to_bytes(8, 'little') + header)
    assert message(open_checkpoint, tmp_path).startswith(f'{path}: the header is corrupt')


def test_a_header_longer_than_the_file_is_an_error(tmp_path):
    path = tmp_path / 'model.safetensors'
    path.write_bytes((1 << 60).to_bytes(8, 'little') + b'{}')
    assert 'a header of 1152921504606846976 bytes in a file of 10' in message(open_checkpoint, tmp_path)


def test_a_file_longer_than_its_header_says_is_an_error(tmp_path):
    path = tmp_path / 'model.safetensors'
    write_safetensors(path, {'x': X})
    path.write_bytes(path.read_bytes() + b'..')
    assert 'longer than its header says' in message(open_checkpoint, tmp_path)


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_a_git_lfs_pointer_is_an_error_that_says_so(tmp_path, name):
    (tmp_path / name).write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n')
    assert 'git lfs pull' in message(open_checkpoint, tmp_path)


def test_an_unreadable_file_is_an_error(tmp_path):
    (tmp_path / 'model.safetensors').mkdir()
    assert (
        message(open_checkpoint, tmp_path)
        == f'{tmp_path}/model.safetensors: expected a regular file, found a folder'
    )
    tensor = Tensor(tmp_path / 'gone', 0, 'float32', (2,), (1,))
    assert message(bytes_of, tensor) == f'{tmp_path}/gone: cannot be read: No such file or directory'


def test_a_failing_disk_is_an_error(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / 'model.safetensors'
    write_safetensors(path, {'x': X})
    monkeypatch.setattr(os, 'preadv', fails)
    tensor = read_safetensors(path)['x']
    assert message(bytes_of, tensor) == f'{path}: cannot be read: Input/output error'


def test_a_missing_shard_is_an_error(shards):
    folder, _ = shards
    (folder / NAMES[1]).unlink()
    assert (
        message(open_checkpoint, folder)
        == f'{folder / NAMES[1]}: missing, but model.safetensors.index.json names it'
    )


def test_a_missing_index_is_an_error(shards):
    folder, _ = shards
    (folder / 'model.safetensors.index.json').unlink()
    assert is_torch_folder(folder)
    assert message(open_checkpoint, folder).startswith(
        f'{folder}/model.safetensors.index.json: missing, though there are'
    )


@pytest.mark.parametrize(
    ('where', 'expected'),
    [
        ({'x': NAMES[0], 'y': NAMES[0]}, f'{NAMES[0]}: lacks tensors that .* says it has: y'),
        ({'x': NAMES[0], 'y': NAMES[1], 'z': NAMES[1]}, f'{NAMES[1]}: lacks tensors that .* says it has: z'),
        ({'x': NAMES[1], 'y': NAMES[0]}, f'{NAMES[0]}: lacks tensors that .* says it has: y'),
        ({'x': NAMES[0], 'z': NAMES[1]}, f'{NAMES[1]}: lacks tensors that .* says it has: z'),
        ({'x': '../x.safetensors'}, r"index.json: refuses '../x.safetensors'"),
        ({'x': '/etc/passwd'}, "index.json: refuses '/etc/passwd'"),
        ({'x': '..'}, r"index.json: refuses '\.\.'"),
        ({'x': 3}, 'index.json: no weight_map'),
        (None, 'index.json: no weight_map'),
    ],
)
def test_an_index_that_disagrees_with_the_files_is_an_error(shards, where, expected):
    folder, index = shards
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index | {'weight_map': where}))
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(folder)


def test_a_tensor_that_is_not_in_the_index_is_an_error(shards):
    folder, _ = shards
    write_safetensors(folder / NAMES[0], {'x': X, 'z': Y})
    assert f'{NAMES[0]}: has tensors that model.safetensors.index.json does not know' in message(
        open_checkpoint, folder
    )


@pytest.mark.parametrize('text', ['{', '[]', '"x"', ''])
def test_an_invalid_index_is_an_error(shards, text):
    folder, _ = shards
    (folder / 'model.safetensors.index.json').write_text(text)
    assert message(open_checkpoint, folder).startswith(f'{folder}/model.safetensors.index.json: ')


def test_a_folder_without_weights_is_an_error(tmp_path):
    assert 'no weights: looked for model.safetensors, ' in message(open_checkpoint, tmp_path)
    assert message(open_checkpoint, tmp_path).endswith('found nothing')
    (tmp_path / 'adapter_model.bin').touch()
    assert message(open_checkpoint, tmp_path).endswith('found adapter_model.bin')
    assert not is_torch_folder(tmp_path)


UNSUPPORTED = {
    **{'F4': 4, 'F6_E2M3': 6, 'F6_E3M2': 6, 'F8_E8M0': 8, 'F8_E4M3': 8, 'F8_E5M2': 8, 'F8_E4M3FNUZ': 8},
    **{'F8_E5M2FNUZ': 8, 'C64': 64, 'U64': 64, 'I64': 64, 'BOOL': 8, 'F64': 64},
}


@pytest.mark.parametrize('code', UNSUPPORTED)
def test_other_dtypes_are_not_reported_as_corrupt(tmp_path, code):
    path = tmp_path / 'model.safetensors'
    data = np.zeros(3 * UNSUPPORTED[code], np.int8)  # 24 elements
    write_safetensors(path, {'x': data, 'y': Y}, x={'dtype': code, 'shape': [4, 6]})
    found = open_checkpoint(tmp_path)
    assert found['x'].shape == (4, 6)
    np.testing.assert_array_equal(bytes_of(found['y']), Y)
    write_safetensors(path, {'x': data[1:]}, x={'dtype': code, 'shape': [4, 6]})
    assert 'the offsets span' in message(open_checkpoint, tmp_path)


@pytest.mark.parametrize('code', ['F7', 'F2', 'Q4_K', '\x1b[31m', 'x' * 99999])
def test_unknown_dtypes_are_not_reported_as_corrupt(tmp_path, code):
    write_safetensors(tmp_path / 'model.safetensors', {'x': X}, x={'dtype': code})
    error = message(open_checkpoint, tmp_path)
    assert 'is unknown; supported are float32, float16, bfloat16' in error
    assert 'corrupt' not in error
    assert error.isprintable()


def entry(shape='1', end='4', name='x') -> str:
    return f'{{"{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,{end}]}}}}'


HEADERS = {
    'a shape of a million axes': (entry('1,' * 10**6 + '1'), 'axes'),
    'a shape that overflows': (entry(','.join(['9' * 18] * 64)), 'more bytes than any file has'),
    'a number of thousands of digits': (entry('9' * 4000), 'not whole numbers of 63 bits'),
    'a number of tens of thousands of digits': (entry('9' * 50_000), 'the header is corrupt'),
    'an offset that overflows': (entry(end='9' * 30), '63 bits'),
    'deep lists': ('{"x":' + '[' * 10**6, 'the header is corrupt'),
    'deep objects': ('{"a":' * 10**6, 'the header is corrupt'),
    'deep metadata': ('{"__metadata__":' + '[' * 10**6, 'the header is corrupt'),
    'a long name': (entry(name='x' * 10**6), 'a name that is too long: 1000000'),
    'true for one': (entry('true'), 'not whole numbers'),
    'NaN': (entry('NaN'), 'not whole numbers'),
    'a shape as a word': (entry().replace('[1]', '"1"'), 'not a list'),
    'three offsets': (entry(end='4,8'), 'the header is corrupt'),
    'nothing': ('null', 'the header is corrupt'),
    'a list of names': ('["x"]', 'the header is corrupt'),
    'escapes': (entry('2', name='\\u001b[31m\\ud800'), 'takes 8 bytes'),
}


@pytest.mark.parametrize('name', HEADERS)
def test_malicious_headers_are_refused(tmp_path, name):
    text, expected = HEADERS[name]
    raw = text.encode()
    (tmp_path / 'model.safetensors').write_bytes(len(raw).to_bytes(8, 'little') + raw + bytes(8))
    began = time.thread_time()
    found = message(open_checkpoint, tmp_path)
    assert expected in found
    assert len(found) <= 500
    assert found.isprintable()
    assert time.thread_time() - began < 5


def test_headers_of_millions_of_entries_are_refused(tmp_path):
    entry = '"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    raw = ('{' + ''.join(entry % i for i in range(150_000))[:-1] + '}').encode()
    path = tmp_path / 'model.safetensors'
    path.write_bytes(len(raw).to_bytes(8, 'little') + raw)
    assert 'more than 100000 objects' in message(open_checkpoint, tmp_path)
    with open(path, 'wb') as file:  # a sparse file, which must not be read
        file.write((100_000_000).to_bytes(8, 'little'))
        file.truncate(100_000_008)
    assert 'the header has 100000000 bytes, expected at most' in message(open_checkpoint, tmp_path)


def special(path, file_type):
    if file_type == 'a FIFO':
        os.mkfifo(path)
    elif file_type == 'a folder':
        path.mkdir()
    elif file_type == 'a device':
        path.symlink_to('/dev/zero')
    else:
        with socket.socket(socket.AF_UNIX) as opened:
            os.chdir(path.parent)  # the length of a socket's path is limited
            opened.bind(path.name)


@pytest.mark.parametrize('file_type', ['a FIFO', 'a folder', 'a device', 'a socket'])
@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin', *INDEXED])
def test_special_files_are_refused(tmp_path, monkeypatch, name, file_type):
    monkeypatch.chdir(tmp_path)
    special(tmp_path / name, file_type)
    assert message(open_checkpoint, tmp_path) == (
        f'{tmp_path / name}: expected a regular file, found {file_type}'
    )


@pytest.mark.parametrize('file_type', ['a FIFO', 'a folder', 'a device', 'a socket'])
def test_shards_that_are_special_files_are_refused(shards, monkeypatch, file_type):
    folder, _ = shards
    monkeypatch.chdir(folder)
    (folder / NAMES[1]).unlink()
    special(folder / NAMES[1], file_type)
    assert (
        message(open_checkpoint, folder) == f'{folder / NAMES[1]}: expected a regular file, found {file_type}'
    )


def test_shards_may_be_links(shards, tmp_path):
    """As in the Hub's cache."""
    folder, _ = shards
    snapshot = tmp_path / 'snapshots' / 'abc'
    snapshot.mkdir(parents=True)
    for path in list(folder.glob('model*')):
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert open_checkpoint(snapshot).keys() == {'x', 'y'}
    (folder / NAMES[1]).unlink()
    assert 'missing, but model.safetensors.index.json names it' in message(open_checkpoint, snapshot)


@pytest.mark.parametrize('name', ['x' * 5000, '\x1b[31m', 'a\nb', '\ud800', 'a\u202eb'])
def test_names_of_shards_are_printable(shards, name):
    folder, index = shards
    index['weight_map']['x'] = name
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    error = message(open_checkpoint, folder)
    assert error.isprintable()
    assert len(error) <= 500


def test_an_index_of_many_files_is_read(shards):
    folder, index = shards
    index['weight_map'] = {f'x{i}': f'file{i}.safetensors' for i in range(100_000)}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    assert 'file0.safetensors: missing' in message(open_checkpoint, folder)


@pytest.mark.parametrize('case', ['same', 'stale index', 'broken index', 'no shards'])
def test_a_single_file_takes_precedence_over_an_index(shards, case):
    """transformers leaves an old index in place when it saves to a single file later."""
    folder, index = shards
    write_safetensors(folder / 'model.safetensors', {'x': X + 1, 'y': Y})
    if case == 'stale index':
        index['weight_map']['gone'] = 'gone.safetensors'
    if case == 'no shards':
        for name in NAMES:
            (folder / name).unlink()
    text = '{' if case == 'broken index' else json.dumps(index)
    (folder / 'model.safetensors.index.json').write_text(text)
    with pytest.warns(
        UserWarning, match='model.safetensors is read, .* model.safetensors.index.json is not'
    ) as warned:
        found = open_checkpoint(folder)
    assert len(warned) == 1
    np.testing.assert_array_equal(bytes_of(found['x']), X + 1)


def test_a_single_bin_takes_precedence_over_its_index(tmp_path):
    write_bin(tmp_path / 'pytorch_model.bin', {'x': X})
    (tmp_path / 'pytorch_model.bin.index.json').write_text('{}')
    with pytest.warns(UserWarning, match='pytorch_model.bin is read'):
        assert open_checkpoint(tmp_path).keys() == {'x'}


def test_safetensors_shards_take_precedence_over_a_single_bin(shards):
    folder, _ = shards
    write_bin(folder / 'pytorch_model.bin', {'z': X})
    assert open_checkpoint(folder).keys() == {'x', 'y'}


def test_an_empty_bin_is_an_error(tmp_path):
    (tmp_path / 'pytorch_model.bin').touch()
    assert 'pytorch_model.bin: an empty file' in message(open_checkpoint, tmp_path)


@pytest.mark.parity
@pytest.mark.filterwarnings('default')
def test_transformers_reads_the_whole_file_too(cfg, tmp_path):
    from tests import peer

    theirs = peer.model(cfg)
    theirs.save_pretrained(tmp_path, max_shard_size='100KB')
    index = (tmp_path / 'model.safetensors.index.json').read_text()
    theirs.model.language_model.norm.weight.data[:] = 7
    theirs.save_pretrained(tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text(index)
    again = type(theirs).from_pretrained(tmp_path)
    assert float(again.model.language_model.norm.weight.detach()[0]) == 7
