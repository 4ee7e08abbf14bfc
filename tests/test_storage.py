"""Damaged or manipulated array files give an error that names them, or the same weights."""

import json
import os
import random
import shutil
import socket
import struct
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.test_checkpoint import SMALL, random_params
from tests.trees import same
from vipllava_jax import checkpoint
from vipllava_jax.arrays import flat, nested
from vipllava_jax.messages import CheckpointError
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.weight_options import QUANTIZED

DTYPES = ('float32', 'bfloat16', 'int8', 'int4')


def saved(dtype: str, folder: Path) -> dict:
    """Writes a folder with a given type of weights; returns its params."""
    params = random_params(SMALL)
    if dtype in QUANTIZED:
        params = nested(quantize_leaves(flat(params), dtype))
    else:
        params = jax.tree.map(lambda x: x.astype(dtype), params)
    checkpoint.save(folder, params, SMALL)
    return params


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """A folder for each type of weights, and its params."""
    places = {dtype: tmp_path_factory.mktemp(dtype) / 'model' for dtype in DTYPES}
    return {dtype: (place, saved(dtype, place)) for dtype, place in places.items()}


@pytest.fixture
def copy(folders, tmp_path):
    return shutil.copytree(folders['float32'][0], tmp_path / 'copy')


def message(folder) -> str:
    with pytest.raises(CheckpointError) as raised:
        checkpoint.restore(folder)
    assert len(str(raised.value)) <= 500
    return str(raised.value)


@pytest.mark.parametrize('dtype', ['bfloat16', 'int4'])
def test_a_flipped_bit_is_an_error_or_changes_no_weight(folders, dtype):
    """Flips two bits per file of the folder; damage to an array's data is always an error."""
    folder, params = folders[dtype]
    chance, errors = random.Random(0), 0
    for file in sorted(path for path in folder.rglob('*') if path.is_file()):
        content = file.read_bytes()
        for _ in range(2):
            bit = chance.randrange(8 * len(content))
            file.write_bytes(flipped(content, bit))
            try:
                same(checkpoint.restore(folder)[0], params)
            except CheckpointError:
                errors += 1
        file.write_bytes(content)
    assert errors > 5


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_flipped_bit_of_any_array_names_it(folders, dtype):
    folder, params = folders[dtype]
    names = ['clip/layers_1/q/w', 'projector/linear_1/w', 'llama/layers_0/gate/w', 'llama/embed/w']
    for name in names:
        leaf = dict(flat(params))[name]
        path = name
        if isinstance(leaf, Quantized):
            leaf, path = leaf.values, f'{name}/values'
        file, at = holder(folder, np.asarray(leaf).tobytes())
        content = file.read_bytes()
        file.write_bytes(flipped(content, 8 * at + 13))
        assert f'{path} does not match the checksum' in message(folder)
        file.write_bytes(content)


def holder(folder: Path, data: bytes) -> tuple[Path, int]:
    """The file that contains some bytes, and their offset."""
    found = [(path, path.read_bytes().find(data)) for path in folder.rglob('*') if path.is_file()]
    return next((path, at) for path, at in found if at >= 0)


@pytest.mark.parametrize('file_type', ['fifo', 'socket', 'folder', 'link', 'gone', 'device'])
@pytest.mark.parametrize('name', ['manifest.ocdbt', 'd', 'd/stray'])
def test_special_files_and_links_out_of_the_folder_are_refused(copy, tmp_path, file_type, name, monkeypatch):
    """Nothing unusual may be opened: opening a FIFO would block forever."""
    place = copy / 'params' / name
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    if file_type == 'fifo':
        os.mkfifo(place)
    elif file_type == 'socket':
        monkeypatch.chdir(place.parent)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(place.name)
    elif file_type == 'folder':
        place.mkdir()
        if name == 'd/stray':
            return  # an additional empty folder is harmless
    else:
        secret = tmp_path / 'secret'
        secret.write_text('secret')
        place.symlink_to({'link': secret, 'gone': tmp_path / 'none', 'device': '/dev/zero'}[file_type])
    assert str(copy) in message(copy)


def test_links_within_the_model_and_into_the_hubs_blobs(folders, tmp_path):
    source, params = folders['float32']
    home = tmp_path / 'hub' / 'models--a--b'
    model = shutil.copytree(source, home / 'snapshots' / '123')
    (home / 'blobs').mkdir()
    for i, file in enumerate(sorted(path for path in model.rglob('*') if path.is_file())):
        file.rename(home / 'blobs' / str(i))
        file.symlink_to(os.path.relpath(home / 'blobs' / str(i), file.parent))
    (tmp_path / 'link').symlink_to(home)
    for place in (model, tmp_path / 'link' / 'snapshots' / '123'):
        same(checkpoint.restore(place)[0], params)
    other = shutil.copytree(source, tmp_path / 'other')
    (other / 'params').rename(tmp_path / 'elsewhere')
    (other / 'params').symlink_to('../elsewhere')
    same(checkpoint.restore(other)[0], params)


@pytest.mark.parametrize('place', ['../secret/', '/tmp//x/', 'd/../../'])
def test_an_index_that_leads_to_other_files_is_refused(copy, place):
    """The manifest is manipulated, with correct checksums."""
    manifest = copy / 'params' / 'manifest.ocdbt'
    data = manifest.read_bytes()
    assert crc32c(data[:-4]) == struct.unpack('<I', data[-4:])[0]
    content = data[data.index(b'\x28\xb5\x2f\xfd') + 9 : -4]  # zstd's one block, uncompressed
    root = next((copy / 'params' / 'd').iterdir())
    name_of_root = f'd/{root.name}'.encode()
    for other in (name_of_root, place.encode() + b'x' * (len(name_of_root) - len(place))):
        (copy / 'secret').mkdir(exist_ok=True)
        shutil.copy(root, copy / 'secret' / other.decode().split('/')[-1])
        body = b'\0\0' + content.replace(name_of_root, other)
        begin = data[:4] + struct.pack('<Q', 16 + len(body)) + body
        manifest.write_bytes(begin + struct.pack('<I', crc32c(begin)))
        if other == name_of_root:
            checkpoint.restore(copy)
    assert 'Invalid key' in message(copy)


def crc32c(data: bytes) -> int:
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = rest >> 1 ^ (0x82F63B78 if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


HUGE = {
    'chunks': [10**9],
    'compressor': None,
    'dtype': '<f4',
    'fill_value': None,
    'filters': None,
    'order': 'C',
}


@pytest.mark.parametrize(
    'metadata',
    [
        HUGE | {'shape': [10**12]},
        HUGE | {'shape': [48]},
        HUGE | {'shape': [48], 'chunks': [48], 'compressor': {'id': 'zstd', 'level': 1}},
        HUGE | {'shape': [48], 'chunks': [48], 'dtype': '<i4'},
        HUGE | {'shape': [48], 'chunks': [48], 'dtype': '|V4'},
        HUGE | {'shape': [], 'chunks': []},
        HUGE | {'shape': [48], 'chunks': [48], 'filters': [{'id': 'delta'}]},
        {},
    ],
)
def test_unexpected_metadata_of_an_array_is_an_error(copy, metadata):
    """Params manipulated with the same tools are read correctly or not at all."""
    import tensorstore

    store = tensorstore.KvStore.open(
        {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{copy}/params/'}}
    ).result()
    text = json.dumps(metadata | {'zarr_format': 2, 'dimension_separator': '.'})
    store.write('llama.norm.w/.zarray', text).result()
    assert 'llama/norm/w' in message(copy)


def test_an_array_without_data_is_an_error_and_not_zeros(copy):
    import tensorstore

    store = tensorstore.KvStore.open(
        {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{copy}/params/'}}
    ).result()
    store.write('llama.norm.w/0', None).result()
    assert f'{copy}/params: damaged' in message(copy)


def test_a_replaced_folder_is_read_again(copy):
    checkpoint.restore(copy)
    params = random_params(SMALL, seed=1)
    checkpoint.save(copy, params, SMALL, overwrite=True)
    same(checkpoint.restore(copy)[0], params)


def test_saving_says_which_arrays_are_not_finite(tmp_path):
    params = random_params(SMALL)
    assert checkpoint.save(tmp_path / 'a', params, SMALL) == ()
    params['llama']['layers_0']['gate']['w'] = params['llama']['layers_0']['gate']['w'].at[3, 4].set(np.nan)
    params['clip']['positions'] = params['clip']['positions'].at[0, 0].set(-np.inf)
    not_finite = ('clip/positions', 'llama/layers_0/gate/w')
    assert checkpoint.save(tmp_path / 'b', params, SMALL) == not_finite
    small = nested(quantize_leaves(flat(params), 'int8'))
    assert checkpoint.save(tmp_path / 'c', small, SMALL) == (not_finite[0], f'{not_finite[1]}/scale')


@pytest.mark.parametrize(
    'error', [MemoryError(), RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating')]
)
def test_a_lack_of_memory_is_not_reported_as_damage(copy, tmp_path, monkeypatch, error):
    def put(*_):
        raise error

    params = random_params(SMALL)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    monkeypatch.setattr(jax, 'device_put', put)
    with pytest.raises(type(error)):
        checkpoint.restore(copy)

    def leaves():
        yield next(flat(params))
        raise error

    with pytest.raises(type(error)):
        checkpoint.save(tmp_path / 'new', shapes, SMALL, leaves=leaves())
    assert not (tmp_path / 'new').exists()
