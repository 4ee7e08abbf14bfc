"""The decoder without the tower: fused weights, rotations and the cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from vipllava_jax.model import fused, llama

forward = jax.jit(vj.forward, static_argnames='cfg')


@pytest.mark.parametrize('kv_heads', [1, 2, 6])
def test_fused_weights_give_the_same_results(cfg, kv_heads, rng):
    cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, kv_heads=kv_heads))
    params = vj.init(jax.random.key(0), cfg)
    layers = {name: fused.fuse(part) for name, part in params['llama'].items() if name.startswith('layers_')}
    joined = {**params, 'llama': {**params['llama'], **layers}}
    assert not {'q', 'k', 'v', 'gate', 'up'} & set(joined['llama']['layers_0'])
    tokens = rng.integers(3, cfg.image_token, (2, 9))
    plain = forward(params, tokens, cfg=cfg)
    np.testing.assert_allclose(forward(joined, tokens, cfg=cfg), plain, atol=1e-5)


@pytest.mark.parametrize('offset', [None, jnp.array([2, 2]), jnp.array([0, 3])], ids=str)
def test_keys_and_values_past_the_last_slot_are_not_written(offset, rng):
    cached = jnp.zeros((2, 4, 1, 2))
    new = jnp.asarray(rng.normal(size=(2, 2, 1, 2)), jnp.float32)
    expected = np.zeros((2, 4, 1, 2), np.float32)
    for row, first in enumerate((0, 0) if offset is None else offset):
        for t in range(2):
            if first + t < 4:
                expected[row, first + t] = new[row, t]
    np.testing.assert_array_equal(llama.write_to_cache(cached, new, offset), expected)


@pytest.mark.parametrize('kv_heads', [1, 2, 6])
def test_fused_weights_are_split_into_those_that_were_fused(cfg, kv_heads):
    cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, kv_heads=kv_heads))
    layer = vj.init(jax.random.key(0), cfg)['llama']['layers_0']
    leaves = [(f'llama/layers_0/{name}/w', module['w']) for name, module in fused.fuse(layer).items()]
    split = dict(part for path, w in leaves for part in fused.split_fused(path, w))
    assert split.keys() == {f'llama/layers_0/{name}/w' for name in layer}
    for name, module in layer.items():
        np.testing.assert_array_equal(split[f'llama/layers_0/{name}/w'], module['w'])


@pytest.mark.parametrize(
    ('names', 'shared'),
    [
        (('q', 'k', 'v', 'qkv'), 'qkv'),
        (('gate', 'up', 'gate_up'), 'gate_up'),
        (('o',), 'o'),
        (('down',), 'down'),
    ],
)
def test_weights_that_are_fused_share_their_input(names, shared):
    for name in names:
        assert fused.shared_input(f'llama/layers_7/{name}/w') == f'llama/layers_7/{shared}'
