"""On a mesh, `load` gives the weights of one device, divided by their letters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import vipllava_jax as vj
from tests.conftest import SMALL
from tests.makers import write_processor_files
from tests.test_checkpoint import random_params
from tests.trees import same
from vipllava_jax import checkpoint, device_memory, loading
from vipllava_jax.arrays import flat
from vipllava_jax.convert.adapter_export import save_adapter
from vipllava_jax.convert.to_torch import export
from vipllava_jax.device_kinds import fleet_of
from vipllava_jax.loading import WeightOptions
from vipllava_jax.model.quantized import Int4, Quantized
from vipllava_jax.sharding import default_sharding, make_mesh
from vipllava_jax.training import lora
from vipllava_jax.weight_sharding import leaf_sharding

MESHES = ({'tensor': 2}, {'tensor': 4}, {'tensor': 8}, {'data': 8}, {'fsdp': 4}, {'data': 2, 'tensor': 4})
MESHES += ({'fsdp': 2, 'tensor': 2}, {'data': 2, 'fsdp': 2, 'tensor': 2})
KINDS = ('plain', 'fused', 'int8', 'int8 fused', 'int4', 'int4 fused', 'merged', 'int4 merged', 'adapter')
TEXTS = {
    'grouped': {'heads': 8, 'kv_heads': 4, 'head_size': 24, 'mlp': 192},  # groups of int4 that span devices
    'odd': {'heads': 3, 'kv_heads': 3, 'vocab': 131, 'mlp': 50},
    'tied': {'tied': True, 'heads': 8, 'kv_heads': 2},
}
ALL = [(text, mesh, kind) for text in TEXTS for mesh in range(len(MESHES)) for kind in KINDS]
# every mesh, kind of weights and config, in a few of their combinations
SOME = [
    (text, mesh, kind)
    for text, mesh, kind in ALL
    if (5 * mesh + KINDS.index(kind) + 7 * [*TEXTS].index(text)) % 22 == 0
]


def on_mesh(axes) -> jax.sharding.Mesh:
    return make_mesh(axes, devices=jax.devices())


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """By the name of a config: a PyTorch folder, a converted one, and an adapter."""

    @functools.cache
    def folders(text: str):
        place = tmp_path_factory.mktemp(text)
        write_processor_files(place / 'files', vocab=131)
        cfg = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, **TEXTS[text]))
        params = random_params(cfg)
        checkpoint.save(place / 'converted', params, cfg)
        export(place / 'converted', place / 'torch')
        adapted = lora.add(params, cfg, rank=2, alpha=4, key=jax.random.key(1))
        adapted = jax.tree.map(lambda x: x if x.any() else jnp.full_like(x, 0.02), adapted)
        save_adapter(place / 'adapter', adapted, cfg)
        return place

    return folders


def options(kind: str, place) -> WeightOptions:
    return WeightOptions(
        quantize=next((q for q in ('int8', 'int4') if q in kind), None),
        fuse='fused' in kind,
        adapter=place / 'adapter' if 'merged' in kind or 'adapter' in kind else None,
        merge='merged' in kind,
    )


def check(place, axes, kind) -> None:
    """The leaves on a mesh equal those on one device, and have the shardings that are known before."""
    mesh, chosen = on_mesh(axes), options(kind, place)
    expected = {}
    for fuse in (False, chosen.fuse):  # on the mesh, some weights may not be fused
        one = loading.open(place / 'torch', dataclasses.replace(chosen, fuse=fuse))
        expected |= dict(flat(one.load(progress=False)))
    for name in ('torch', 'converted'):
        source = loading.open(place / name, chosen, mesh)
        params = source.load(progress=False)
        described = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), params)
        assert described == jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), source.shapes())
        for path, leaf in flat(params):
            shardings = jax.tree.leaves(leaf_sharding(path, leaf, mesh))
            assert [x.sharding for x in jax.tree.leaves(leaf)] == shardings, path
            equal(leaf, expected[path], exact='merged' not in kind)


def equal(leaf, expected, exact: bool) -> None:
    if isinstance(leaf, Int4):
        leaf = leaf.with_largest_group()
    if exact:
        same(leaf, expected)
    elif not isinstance(leaf, Quantized):  # rounding may differ, because devices add other shapes
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(('text', 'mesh', 'kind'), SOME)
def test_weights_on_a_mesh_equal_those_on_one_device(models, text, mesh, kind):
    check(models(text), MESHES[mesh], kind)


@pytest.mark.by_hand
@pytest.mark.parametrize(('text', 'mesh', 'kind'), ALL)
def test_weights_on_every_mesh_equal_those_on_one_device(models, text, mesh, kind):
    check(models(text), MESHES[mesh], kind)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['int4', pytest.param('plain', marks=pytest.mark.slow)])
def test_params_on_a_mesh_are_saved_as_those_of_one_device(models, tmp_path, kind):
    place = models('grouped')
    source = loading.open(place / 'torch', options(kind, place), on_mesh({'fsdp': 2, 'tensor': 4}))
    checkpoint.save(tmp_path / 'saved', source.load(progress=False), source.cfg)
    one = loading.open(place / 'torch', options(kind, place)).load(progress=False)
    same(checkpoint.restore(tmp_path / 'saved')[0], one)
    again = loading.open(tmp_path / 'saved', mesh=on_mesh({'tensor': 8})).load(progress=False)
    for path, leaf in flat(again):
        equal(leaf, dict(flat(one))[path], exact=True)


def test_int4_with_scales_that_no_folder_has_is_not_saved(models, tmp_path):
    source = loading.open(models('grouped') / 'torch', WeightOptions(quantize='int4', fuse=False))
    params = source.load(progress=False)
    w = params['llama']['layers_0']['down']['w']
    finer = w.with_group(w.group // 2)
    params['llama']['layers_0']['down']['w'] = dataclasses.replace(finer, scale=finer.scale.at[0, 0].add(1))
    with pytest.raises(
        ValueError, match='down/w: its scales are for groups of 32 values, but a folder has groups of 64'
    ):
        checkpoint.save(tmp_path / 'saved', params, source.cfg)


@pytest.mark.slow
def test_adapters_on_a_mesh_are_saved_as_those_of_one_device(models, tmp_path):
    place = models('tied')
    for name, mesh in (('one', None), ('mesh', on_mesh({'fsdp': 2, 'tensor': 4}))):
        source = loading.open(place / 'torch', options('adapter', place), mesh)
        save_adapter(tmp_path / name, source.load(progress=False), source.cfg, projector=True)
    one, mesh = ((tmp_path / name / 'adapter_model.safetensors').read_bytes() for name in ('one', 'mesh'))
    assert one == mesh


@pytest.mark.slow
def test_the_description_of_a_model_on_a_mesh_counts_its_devices(models):
    model = vj.load(models('odd') / 'torch', mesh={'tensor': 2}, progress=False)
    assert '2 x cpu' in repr(model)
    assert repr(model).replace('2 x cpu', 'cpu') == repr(vj.load(models('odd') / 'torch', progress=False))


def test_auto_loads_to_the_mesh_that_is_chosen(models, monkeypatch):
    sizes = []

    def choose(cfg, shapes):
        sizes.append(len(shapes))
        return {'data': 2, 'tensor': 4}

    monkeypatch.setattr(device_memory, 'choose_mesh', choose)
    source = loading.open(models('tied') / 'torch', mesh='auto')
    assert dict(source.mesh.shape) == {'data': 2, 'tensor': 4}
    assert sizes == [len(list(source.leaf_shapes()))]


def test_auto_uses_a_single_device_without_a_mesh(models, monkeypatch):
    one = fleet_of(jax.devices()[:1])
    monkeypatch.setattr(device_memory, 'fleet_of', lambda devices: one)
    model = vj.load(models('tied') / 'torch', mesh='auto', progress=False)
    assert {x.sharding for x in jax.tree.leaves(model.params)} == {default_sharding()}


@pytest.mark.parametrize(
    ('mesh', 'error', 'message'),
    [
        (7, TypeError, 'mesh is 7: expected a mesh, its axes'),
        ('every', TypeError, 'expected a mesh, its axes'),
        ({'model': 2}, ValueError, "no axis 'model'; the axes are data, fsdp, tensor"),
        ({'tensor': 16}, ValueError, 'tensor 16 needs 16 devices, but there are 8'),
        (Mesh(np.array(jax.devices()[:2]), ('x',)), ValueError, "no axis 'x'"),
        (jax.make_mesh((2,), ('tensor',), axis_types=(AxisType.Explicit,)), ValueError, 'tensor is Explicit'),
    ],
)
def test_a_mesh_that_cannot_be_used_is_refused_before_anything_is_read(mesh, error, message):
    with pytest.raises(error, match=message):
        vj.load('no such folder', mesh=mesh)
