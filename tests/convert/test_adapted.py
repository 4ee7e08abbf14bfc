"""Weights with an adapter, merged or separate, in every dtype; their shapes are known in advance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.convert.files import Q, pair, write_adapter
from tests.rows import ragged
from tests.trees import same
from vipllava_jax import checkpoint, loading, placement
from vipllava_jax.arrays import flat, nested
from vipllava_jax.convert import to_flax, to_torch
from vipllava_jax.loading import WeightOptions, load
from vipllava_jax.messages import CheckpointError
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.model.weights import LoRA
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.training import lora

ROWS = [(9, 2), (6, 0), (15, 1)]
forward = jax.jit(vj.forward, static_argnames='cfg')


@pytest.mark.parametrize(
    ('dtype', 'quantize', 'merge'),
    [(None, None, True), ('bfloat16', None, False), ('bfloat16', 'int8', True), (None, 'int8', False)],
)
def test_the_shapes_are_known_before_the_weights(folder, source, adapter, dtype, quantize, merge):
    for base in (folder, source):
        options = dict(dtype=dtype, quantize=quantize, adapter=adapter, merge=merge, fuse=True)
        shapes = loading.open(base, WeightOptions(**options)).shapes()
        params = load(base, **options).params
        assert jax.tree.structure(shapes) == jax.tree.structure(params)
        for x, y in zip(jax.tree.leaves(shapes), jax.tree.leaves(params), strict=True):
            assert (x.shape, x.dtype, x.sharding) == (y.shape, y.dtype, y.sharding)
        assert ('qkv' in params['llama']['layers_0']) == merge


def test_an_adapter_is_merged_before_quantizing(model, adapter, source, tmp_path, rng):
    params, _ = model
    expected = nested(quantize_leaves(flat(lora.merge(params)), 'int8'))
    same(dict(flat(load(source, adapter=adapter, quantize='int8', fuse=False).params)), dict(flat(expected)))
    to_flax.convert(source, tmp_path / 'small', quantize='int8', adapter=adapter)
    same(dict(flat(load(tmp_path / 'small', fuse=False).params)), dict(flat(expected)))


@pytest.mark.slow
def test_an_adapter_stays_separate_for_weights_stored_in_int8(model, adapter, source, tmp_path, rng):
    params, cfg = model
    to_flax.convert(source, tmp_path / 'small', quantize='int8')
    found = load(tmp_path / 'small', adapter=adapter).params
    w = found['llama']['layers_1']['down']['w']
    assert isinstance(w, LoRA)
    assert isinstance(w.base, Quantized)
    batch = ragged(cfg, rng, ROWS)
    inputs = dict(images=batch.images, image_counts=batch.image_counts, cfg=cfg)
    exact = forward(params, batch.tokens, **inputs)
    for near in (found, load(source, adapter=adapter, merge=False, quantize='int8').params):
        y = forward(near, batch.tokens, **inputs)
        assert 0 < jnp.linalg.norm(y - exact) < 0.03 * jnp.linalg.norm(exact)


def test_merging_rounds_once(folder, adapter, model):
    exact = dict(flat(lora.merge(model[0])))
    for path, w in flat(load(folder, dtype='bfloat16', adapter=adapter, fuse=False).params):
        np.testing.assert_array_equal(w, exact[path].astype(jnp.bfloat16))


def test_both_conversions_merge_the_adapter(folder, source, adapter, model, tmp_path):
    expected = dict(flat(lora.merge(model[0])))
    to_flax.convert(source, tmp_path / 'ours', adapter=adapter)
    to_torch.export(folder, tmp_path / 'theirs', adapter=adapter)
    for name in ('ours', 'theirs'):
        same(dict(flat(load(tmp_path / name, fuse=False).params)), expected)


def test_params_with_an_adapter_cannot_be_saved(model, tmp_path):
    with pytest.raises(CheckpointError, match='have an adapter: merge it, or save it separately'):
        checkpoint.save(tmp_path / 'model', *model)


def test_on_a_tpu_adapters_stay_separate(folder, tmp_path, rng, monkeypatch):
    """On a TPU all layers share one layer's formats, but not every layer must have an adapter."""
    write_adapter(tmp_path / 'a', pair(Q, 48, 48, rng))
    expected = load(folder, adapter=tmp_path / 'a', merge=False, fuse=False).params
    monkeypatch.setattr(placement, '_on', lambda backend: backend == 'tpu')
    same(load(folder, adapter=tmp_path / 'a', merge=False).params, expected)
    load(folder, adapter=tmp_path / 'a')
