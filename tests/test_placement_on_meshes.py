"""Placing, fusing, quantizing and merging weights on a mesh: without exchanges that are not needed."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vipllava_jax as vj
from tests.compilations import compilations
from tests.conftest import SMALL
from tests.test_loading_on_meshes import TEXTS, on_mesh
from tests.trees import same
from vipllava_jax import loading, placement, quantizing
from vipllava_jax.arrays import flat
from vipllava_jax.convert import adapted
from vipllava_jax.generation import decoding
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.loading import WeightOptions
from vipllava_jax.model.params import weight_axes
from vipllava_jax.model.quantized import quantize
from vipllava_jax.model.weights import LoRA
from vipllava_jax.weight_sharding import leaf_sharding


def exchanged_sizes(compiled) -> list[int]:
    """The numbers of elements that the collectives of a program return, sorted."""
    found = re.findall(r'= \w+\[([\d,]*)\]\S* (?:all-|collective-|reduce-scatter)', compiled.as_text())
    return sorted(math.prod(map(int, shape.split(','))) if shape else 1 for shape in found)


@pytest.mark.parametrize(('name', 'shape'), [('o', (8, 24, 64)), ('down', (192, 64)), ('q', (64, 8, 24))])
@pytest.mark.parametrize('dtype', ['int8', 'int4'])
def test_quantizing_gathers_no_weight_on_a_device(name, shape, dtype):
    path, mesh = f'llama/layers_0/{name}/w', on_mesh({'tensor': 8})
    axes = weight_axes(path)
    w = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=leaf_sharding(path, np.zeros(shape), mesh))
    lowered = quantizing._convert.lower(w, dtype=dtype, axes=axes.quantized_axes, placed=(axes, mesh))
    assert max(exchanged_sizes(lowered.compile()), default=0) <= math.prod(shape) / 8


@pytest.mark.parametrize(('name', 'shape'), [('o', (8, 24, 64)), ('down', (192, 64)), ('q', (64, 8, 24))])
@pytest.mark.parametrize('axes', [{'tensor': 8}, {'fsdp': 2, 'tensor': 4}])
def test_merging_an_adapter_needs_no_communication(name, shape, axes):
    path, mesh = f'llama/layers_0/{name}/w', on_mesh(axes)
    n = len(weight_axes(path).contracted)
    w, a, b = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, (*shape[:n], 2), (2, *shape[n:])))
    leaf = LoRA(w, a, b, 1.0)
    leaf = placement._with_shardings(leaf, leaf_sharding(path, leaf, mesh))
    assert not exchanged_sizes(adapted._cast.lower(leaf, dtype=jnp.dtype('float32')).compile())


@pytest.mark.parametrize('quantize', [None, 'int4'])
def test_on_a_tpu_the_formats_of_weights_keep_their_shardings(folder, monkeypatch, quantize):
    monkeypatch.setattr(placement, '_on', lambda backend: backend == 'tpu')
    mesh = on_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
    source = loading.open(folder, WeightOptions(quantize=quantize), mesh)
    params = source.load(progress=False)
    for path, leaf in flat(params):
        assert jax.tree.map(lambda x: x.sharding, leaf) == leaf_sharding(path, leaf, mesh), path
    formats, expected = (
        jax.tree.map(lambda x: x.format, tree['llama']) for tree in (params, source.shapes())
    )
    assert formats == expected


@pytest.mark.slow
def test_programs_compiled_for_the_shapes_are_used(folder):
    source = loading.open(folder, WeightOptions(quantize='int4', fuse=True), {'data': 2, 'tensor': 2})
    batch = Processor.load(folder).for_model(source.cfg)(['What is it?', 'Why?', 'Who?'])
    chosen = dict(cfg=source.cfg, max_new_tokens=150)
    decoding.compile_for(source.shapes(), batch, **chosen)
    params = source.load(progress=False)
    with compilations('prefill_batch|decode_chunk') as compiled:
        vj.generate(params, batch, **chosen)
    assert not compiled


def test_fusing_needs_no_communication():
    cfg = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, **TEXTS['grouped']))
    mesh = on_mesh({'fsdp': 2, 'tensor': 4})
    shapes = placement.place_shapes(vj.abstract(cfg), cfg, fuse=False, mesh=mesh)
    weights = placement.fused_weights(cfg, mesh)
    lowered = placement._fuse_on_mesh.lower(shapes['llama']['layers_0'], weights=weights, mesh=mesh)
    assert not exchanged_sizes(lowered.compile())


def test_weights_are_fused_only_where_the_mesh_divides_the_result():
    def fused(axes, **sizes):
        cfg = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, **sizes))
        return [weight.name for weight in placement.fused_weights(cfg, on_mesh(axes))]

    assert fused({'tensor': 4}, heads=8, kv_heads=4) == ['qkv', 'gate_up']
    assert fused({'tensor': 4}, heads=8, kv_heads=2) == ['gate_up']
    assert fused({'tensor': 4}, heads=8, kv_heads=4, mlp=50) == ['qkv']
    assert fused({'data': 8}, heads=3, kv_heads=3, mlp=50) == ['qkv', 'gate_up']


@pytest.mark.slow
@given(st.sampled_from([(128,), (192,), (8, 24), (3, 16)]), st.integers(0, 2**32 - 1))
@settings(max_examples=6, deadline=None)
def test_smaller_groups_of_int4_are_the_same_weight(contracted, seed):
    w = jnp.asarray(np.random.default_rng(seed).standard_normal((*contracted, 5), np.float32))
    large = quantize(w, len(contracted), 'int4')
    for group in (8, 16):
        small = large.with_group(group)
        same(small, quantize(w, len(contracted), 'int4', group))
        same(small.astype(jnp.float32), large.astype(jnp.float32))
        same(small.with_largest_group(), large)
