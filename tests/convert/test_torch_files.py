"""Safetensors, shards and indexes: right bytes, or one line that names the file."""

import errno
import json
import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vipllava_convert.tensors import Tensor, read
from vipllava_convert.torch_files import is_torch_folder, open_checkpoint, read_safetensors

from tests.convert.files import write_bin, write_safetensors
from vipllava_jax.folders import CheckpointError

X, Y = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.float16)
NAMES = ('model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors')


def bytes_of(tensor):
    return np.array(read(tensor, memoryview(bytearray(1 << 12))))


def message(call, *args) -> str:
    with pytest.raises(CheckpointError) as told:
        call(*args)
    assert '\n' not in str(told.value)
    return str(told.value)


@pytest.fixture
def shards(tmp_path):
    """A folder of two shards with a tensor each, and its index as a dict to write."""
    for name, tensors in zip(NAMES, ({'x': X}, {'y': Y}), strict=True):
        write_safetensors(tmp_path / name, tensors)
    index = {'metadata': {'total_size': 32}, 'weight_map': {'x': NAMES[0], 'y': NAMES[1]}}
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps(index))
    return tmp_path, index


@given(
    st.sampled_from(['float32', 'float16', 'bfloat16']), st.lists(st.integers(0, 5), max_size=4), st.data()
)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, dtype, shape, data):
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)
    raw = data.draw(
        st.binary(min_size=kind.itemsize * int(np.prod(shape)), max_size=kind.itemsize * int(np.prod(shape)))
    )
    array = np.frombuffer(raw, kind).reshape(shape)
    path = tmp_path_factory.mktemp('file') / 'model.safetensors'
    write_safetensors(path, {'before': Y, 'it': array, 'after': X})
    found = bytes_of(read_safetensors(path)['it'])
    assert (found.dtype, found.shape, found.tobytes()) == (kind, tuple(shape), raw)


def test_shards_are_one(shards):
    tensors = open_checkpoint(shards[0])
    np.testing.assert_array_equal(bytes_of(tensors['x']), X)
    np.testing.assert_array_equal(bytes_of(tensors['y']), Y)


def test_safetensors_come_first(tmp_path):
    write_safetensors(tmp_path / 'model.safetensors', {'x': X})
    write_bin(tmp_path / 'pytorch_model.bin', {'x': Y})
    assert open_checkpoint(tmp_path)['x'].dtype == 'float32'


@pytest.mark.parametrize('keep', [0, 5, 20, -1])
def test_truncated(tmp_path, keep):
    path = tmp_path / 'model.safetensors'
    write_safetensors(path, {'x': X})
    path.write_bytes(path.read_bytes()[:keep])
    assert message(open_checkpoint, tmp_path).startswith(f'{path}: truncated')


def test_became_shorter_while_it_was_read(tmp_path):
    path = tmp_path / 'model.safetensors'
    write_safetensors(path, {'x': X})
    tensor = read_safetensors(path)['x']
    path.write_bytes(path.read_bytes()[:-1])
    assert message(bytes_of, tensor) == f'{path}: became shorter while it was read'


@pytest.mark.parametrize(
    ('changed', 'told'),
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
def test_corrupt_headers(tmp_path, changed, told):
    path = tmp_path / 'model.safetensors'
    write_safetensors(path, {'x': X, 'y': Y}, x=changed)
    with pytest.raises(CheckpointError, match=told) as error:
        open_checkpoint(tmp_path)
    assert str(error.value).startswith(f'{path}: ')


@pytest.mark.parametrize(
    'header', [b'{', b'[]', b'{"x": 3}', b'\xff\xff', b'{"x": {}}', b'[' * 9999, b'{"a": 1, "a": 2}']
)
def test_headers_that_are_none(tmp_path, header):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(len(header).to_bytes(8, 'little') + header)
    assert message(open_checkpoint, tmp_path).startswith(f'{path}: the header is corrupt')


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / 'model.safetensors'
    path.write_bytes((1 << 60).to_bytes(8, 'little') + b'{}')
    assert 'a header of 1152921504606846976 bytes in a file of 10' in message(open_checkpoint, tmp_path)


def test_more_than_the_header_says(tmp_path):
    path = tmp_path / 'model.safetensors'
    write_safetensors(path, {'x': X})
    path.write_bytes(path.read_bytes() + b'..')
    assert 'longer than its header says' in message(open_checkpoint, tmp_path)


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
def test_a_pointer_in_place_of_the_weights(tmp_path, name):
    (tmp_path / name).write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n')
    assert 'git lfs pull' in message(open_checkpoint, tmp_path)


def test_a_file_that_cannot_be_read(tmp_path):
    """A folder in the place of a file stands for whatever may be in the way."""
    (tmp_path / 'model.safetensors').mkdir()
    assert (
        message(open_checkpoint, tmp_path) == f'{tmp_path}/model.safetensors: cannot be read: Is a directory'
    )
    tensor = Tensor(tmp_path / 'gone', 0, 'float32', (2,), (1,))
    assert message(bytes_of, tensor) == f'{tmp_path}/gone: cannot be read: No such file or directory'


def test_a_disk_that_fails(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / 'model.safetensors'
    write_safetensors(path, {'x': X})
    monkeypatch.setattr(os, 'preadv', fails)
    tensor = read_safetensors(path)['x']
    assert message(bytes_of, tensor) == f'{path}: cannot be read: Input/output error'


def test_a_missing_shard(shards):
    folder, _ = shards
    (folder / NAMES[1]).unlink()
    assert (
        message(open_checkpoint, folder)
        == f'{folder / NAMES[1]}: missing, but model.safetensors.index.json names it'
    )


def test_a_missing_index(shards):
    folder, _ = shards
    (folder / 'model.safetensors.index.json').unlink()
    assert is_torch_folder(folder)
    assert message(open_checkpoint, folder).startswith(
        f'{folder}/model.safetensors.index.json: missing, though there are'
    )


@pytest.mark.parametrize(
    ('where', 'told'),
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
def test_an_index_that_disagrees(shards, where, told):
    folder, index = shards
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index | {'weight_map': where}))
    with pytest.raises(CheckpointError, match=told):
        open_checkpoint(folder)


def test_a_tensor_the_index_does_not_know(shards):
    folder, _ = shards
    write_safetensors(folder / NAMES[0], {'x': X, 'z': Y})
    assert f'{NAMES[0]}: has tensors that model.safetensors.index.json does not know' in message(
        open_checkpoint, folder
    )


@pytest.mark.parametrize('text', ['{', '[]', '"x"', ''])
def test_an_index_that_is_none(shards, text):
    folder, _ = shards
    (folder / 'model.safetensors.index.json').write_text(text)
    assert message(open_checkpoint, folder).startswith(f'{folder}/model.safetensors.index.json: ')


def test_nothing_there(tmp_path):
    assert 'no weights: looked for model.safetensors, ' in message(open_checkpoint, tmp_path)
    assert message(open_checkpoint, tmp_path).endswith('found nothing')
    (tmp_path / 'adapter_model.bin').touch()
    assert message(open_checkpoint, tmp_path).endswith('found adapter_model.bin')
    assert not is_torch_folder(tmp_path)
