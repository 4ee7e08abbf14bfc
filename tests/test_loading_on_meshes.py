"""On a mesh, `load` gives the weights of one device, divided by their letters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conftest import SMALL
from tests.makers import write_processor_files
from tests.trees import same
from vipllava_jax import checkpoint, loading
from vipllava_jax.arrays import flat
from vipllava_jax.convert.adapter_export import save_adapter
from vipllava_jax.convert.to_torch import export
from vipllava_jax.loading import WeightOptions
from vipllava_jax.model.params import init
from vipllava_jax.model.quantized import Int4, Quantized
from vipllava_jax.sharding import make_mesh
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
# every mesh with every kind of weights, in one of the configs
SOME = [(text, mesh, kind) for i, (text, mesh, kind) in enumerate(ALL) if (mesh + KINDS.index(kind)) % 8 == 0]


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
        params = init(jax.random.key(0), cfg)
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


@pytest.mark.parametrize(('text', 'mesh', 'kind'), SOME)
def test_weights_on_a_mesh_equal_those_on_one_device(models, text, mesh, kind):
    check(models(text), MESHES[mesh], kind)


@pytest.mark.by_hand
@pytest.mark.parametrize(('text', 'mesh', 'kind'), ALL)
def test_weights_on_every_mesh_equal_those_on_one_device(models, text, mesh, kind):
    check(models(text), MESHES[mesh], kind)
