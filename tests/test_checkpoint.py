"""Our checkpoint format: saving and restoring is the identity, and damage is an error of one line."""

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TINY
from vipllava_jax import checkpoint
from vipllava_jax.arrays import flat, nested
from vipllava_jax.config import Config
from vipllava_jax.messages import CheckpointError
from vipllava_jax.model.params import abstract
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.weight_options import FLOATS

SMALL = dataclasses.replace(
    TINY,
    vision=dataclasses.replace(TINY.vision, layers=2),
    text=dataclasses.replace(TINY.text, layers=1),
    feature_layers=(-2, 0, 1, 2, -1),
)


def random_params(cfg: Config, seed: int = 0) -> dict:
    """Params of a config's shapes, without compiling anything."""
    rng = np.random.default_rng(seed)
    leaves = flat(abstract(cfg))
    return nested((path, jnp.asarray(rng.standard_normal(x.shape, np.float32))) for path, x in leaves)


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@given(
    st.lists(st.sampled_from(FLOATS), min_size=1, max_size=7),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=10, deadline=None)
def test_saving_and_restoring_is_the_identity(tmp_path_factory, dtypes, streamed, seed):
    """For any bits, including NaN and subnormal numbers, in any mixture of dtypes."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for i, (path, leaf) in enumerate(flat(abstract(SMALL))):
        dtype = jnp.dtype(dtypes[i % len(dtypes)])
        leaves[path] = np.frombuffer(rng.bytes(leaf.size * dtype.itemsize), dtype).reshape(leaf.shape)
    params, folder = nested(leaves.items()), tmp_path_factory.mktemp('models') / 'model'
    if streamed:
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        checkpoint.save(folder, shapes, SMALL, leaves=reversed(leaves.items()))
    else:
        checkpoint.save(folder, jax.tree.map(jnp.asarray, params), SMALL)
    found, cfg = checkpoint.restore(folder)
    assert cfg == SMALL
    same(found, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A folder and the params in it."""
    params, folder = random_params(SMALL), tmp_path_factory.mktemp('models') / 'model'
    checkpoint.save(folder, params, SMALL)
    return folder, params


@pytest.mark.parametrize('dtype', [*FLOATS, jnp.bfloat16])
def test_restoring_in_another_dtype_rounds_once(model, dtype):
    folder, params = model
    seen = []
    found, _ = checkpoint.restore(folder, dtype=dtype, progress=lambda *values: seen.append(values))
    same(found, jax.tree.map(lambda x: x.astype(dtype), params))
    assert seen[-1][0] == seen[-1][1] == sum(x.nbytes for x in jax.tree.leaves(params))


def test_streaming_takes_a_dtype_by_its_name(model):
    folder, params = model
    expected = dict(flat(jax.tree.map(lambda x: x.astype('bfloat16'), params)))
    same(dict(checkpoint.open(folder).stream('bfloat16')), expected)


def test_a_folder_is_described_without_its_params(model, tmp_path):
    folder, params = model
    copy = shutil.copytree(folder, tmp_path / 'copy', ignore=shutil.ignore_patterns('params'))
    stored = checkpoint.open(copy)
    assert stored.cfg == SMALL
    assert {p: (x.shape, x.dtype) for p, x in stored.leaves.items()} == {
        p: (x.shape, x.dtype) for p, x in flat(params)
    }


def test_orbax_can_read_the_params(model):
    import orbax.checkpoint as ocp

    folder, params = model
    with ocp.PyTreeCheckpointer() as checkpointer:
        same(jax.tree.map(np.asarray, checkpointer.restore(folder / 'params')), params)


def test_saving_and_restoring_print_nothing(model, tmp_path, capfd):
    folder, params = model
    checkpoint.restore(folder)
    checkpoint.save(tmp_path / 'other', params, SMALL)
    assert capfd.readouterr() == ('', '')


@pytest.fixture
def copy(model, tmp_path):
    return shutil.copytree(model[0], tmp_path / 'copy')


def message(folder) -> str:
    with pytest.raises(CheckpointError) as raised:
        checkpoint.restore(folder)
    assert '\n' not in str(raised.value)
    assert str(folder) in str(raised.value)
    return str(raised.value)


def test_a_truncated_file_is_an_error(copy):
    largest = max((copy / 'params').rglob('*'), key=lambda path: path.stat().st_size if path.is_file() else 0)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    assert message(copy).startswith(f'{copy}/params: damaged or incomplete, copy it again: ')


@pytest.mark.parametrize('name', ['params', 'params/manifest.ocdbt', 'params/d', 'params/ocdbt.process_0'])
def test_a_missing_file_is_an_error(copy, name):
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert message(copy).startswith(f'{copy}/params: ')


def test_a_missing_config_is_an_error(copy):
    (copy / 'config.json').unlink()
    assert message(copy) == f'{copy}/config.json: cannot be read: No such file or directory'


def changed(folder, **fields) -> str:
    mark = folder / checkpoint.MARK
    mark.write_text(json.dumps(json.loads(mark.read_text()) | fields))
    return message(folder)


def test_a_newer_format_is_an_error(copy):
    error = changed(copy, format=4, version='9.9')
    assert 'vipllava.json: format 4 of vipllava-jax 9.9; this is 0' in error
    assert 'upgrade it' in error


@pytest.mark.parametrize('params', [None, 3, [], {'x': 3}, {'x': ['float32', 'y']}, {'x': ['no type', [2]]}])
def test_an_invalid_list_of_params_is_an_error(copy, params):
    assert 'vipllava.json' in changed(copy, params=params)


def test_a_list_that_disagrees_with_the_config_is_an_error(copy):
    listed = json.loads((copy / checkpoint.MARK).read_text())['params']
    del listed['clip/positions']
    listed['llama/norm/w'][1] = [49]
    error = changed(copy, params={**listed, 'llama/extra': ['float32', [1]]})
    assert error.endswith('do not agree on clip/positions, llama/extra, llama/norm/w; convert it again')


def test_params_that_disagree_with_the_list_are_an_error(copy):
    text = dataclasses.replace(SMALL.text, mlp=57)
    other = dataclasses.replace(SMALL, text=text)
    shutil.rmtree(copy / 'params')
    checkpoint.save(copy.parent / 'other', random_params(other), other)
    shutil.move(copy.parent / 'other' / 'params', copy / 'params')
    assert '/params: ' in message(copy)
    shutil.rmtree(copy / 'params')
    other = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, tied=True))
    checkpoint.save(copy.parent / 'third', random_params(other), other)
    shutil.move(copy.parent / 'third' / 'params', copy / 'params')
    assert 'llama/head/w is not an uncompressed float32 array of the shape [48, 128]' in message(copy)


def test_fused_params_are_refused_when_saving(folder, tmp_path):
    from vipllava_jax.loading import load

    model = load(folder, fuse=True)
    with pytest.raises(CheckpointError, match='fuse=False'):
        checkpoint.save(tmp_path / 'fused', model.params, model.cfg)
    assert not (tmp_path / 'fused').exists()


def test_the_authors_image_settings_are_kept_in_processor_files(folder, tmp_path):
    """Image settings that only config.json has must be kept, although config.json is rewritten."""
    import json
    import shutil

    from vipllava_jax.inputs.processor import Processor

    source = tmp_path / 'authors'
    source.mkdir()
    shutil.copy(folder / 'tokenizer.json', source)
    shutil.copy(folder / 'tokenizer_config.json', source)
    (source / 'config.json').write_text(json.dumps({'mm_vision_tower': 'clip', 'image_aspect_ratio': 'pad'}))
    target = tmp_path / 'target'
    target.mkdir()
    checkpoint.copy_files(source, target)
    assert Processor.load(target).image_settings == Processor.load(source).image_settings


def test_special_files_are_not_copied_with_the_processor(tmp_path):
    (tmp_path / 'source').mkdir()
    for name, file_type in (('tokenizer.json', 'FIFO'), ('generation_config.json', 'device')):
        place = tmp_path / 'source' / name
        os.mkfifo(place) if file_type == 'FIFO' else place.symlink_to('/dev/zero')
        with pytest.raises(CheckpointError, match=f'{name}: .* a {file_type}'):
            checkpoint.copy_files(tmp_path / 'source', tmp_path)
        place.unlink()


@pytest.mark.parametrize(('dtype', 'format'), [('int8', 2), ('int4', 3)])
def test_values_and_scales_are_joined_in_any_order(dtype, format, tmp_path):
    params = nested(quantize_leaves(flat(random_params(SMALL)), dtype))
    checkpoint.save(tmp_path / 'model', params, SMALL)
    mark = tmp_path / 'model' / 'vipllava.json'
    content = json.loads(mark.read_text())
    assert content['format'] == format
    content['params'] = dict(sorted(content['params'].items()))
    mark.write_text(json.dumps(content))
    same(checkpoint.restore(tmp_path / 'model')[0], params)
    del content['params']['llama/head/w/scale']
    mark.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match='llama/head/w has only one'):
        checkpoint.restore(tmp_path / 'model')
