"""On a mesh, logits and answers are those of one device, and programs exchange only what they must."""

import contextlib
import dataclasses
import itertools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.conftest import SMALL
from tests.gates.program import collectives
from tests.rows import ragged
from vipllava_jax.arrays import flat, nested
from vipllava_jax.generation import decoding
from vipllava_jax.generation.rows import place_rows
from vipllava_jax.generation.state import eos_rows, insert, take
from vipllava_jax.model import fused
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.sharding import make_mesh
from vipllava_jax.training import lora
from vipllava_jax.weight_sharding import leaf_sharding, with_divisible_groups

MESHES = ({'tensor': 2}, {'tensor': 4}, {'tensor': 8}, {'data': 2}, {'data': 8}, {'fsdp': 4})
MESHES += ({'data': 2, 'tensor': 4}, {'fsdp': 2, 'tensor': 2}, {'data': 2, 'fsdp': 2, 'tensor': 2})
WEIGHTS = ('plain', 'fused', 'int8', 'int8 fused', 'int4', 'int4 fused', 'adapter', 'int8 adapter')
TEXTS = {
    'grouped': {},  # 6 heads, 2 keys
    'divisible': {'heads': 8, 'kv_heads': 8, 'mlp': 64},
    'odd': {'heads': 3, 'kv_heads': 3, 'vocab': 131, 'mlp': 24},
    'tied': {'tied': True, 'heads': 4, 'kv_heads': 4},
}
PAIRS = [  # every axis alone and with others, every config, and weights of most types
    ({'tensor': 4}, 'int4 fused', 'divisible'),
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, 'plain', 'odd'),
    ({'data': 8}, 'int8 adapter', 'tied'),
    ({'fsdp': 4}, 'int4', 'odd'),
    ({'data': 2, 'tensor': 4}, 'int8 fused', 'grouped'),
]
forward = jax.jit(vj.forward, static_argnames='cfg')


def config(text: str) -> vj.Config:
    return dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, **TEXTS[text]))


def weights(name: str, cfg: vj.Config):
    """Random params, quantized, fused or with adapters as the name says."""
    quantize = next((q for q in ('int8', 'int4') if q in name), None)
    params = nested(quantize_leaves(flat(vj.init(jax.random.key(0), cfg)), quantize))
    if 'adapter' in name:
        params = lora.add(params, cfg, rank=2, alpha=4, key=jax.random.key(1))
        params = jax.tree.map(lambda x: x if x.any() else jnp.full_like(x, 0.02), params)  # b begins as zeros
    if 'fused' in name:
        layers = [name for name in params['llama'] if name.startswith('layers_')]
        params['llama'] |= {name: fused.fuse(params['llama'][name]) for name in layers}
    return params


def on_mesh(params, axes):
    mesh = make_mesh(axes, devices=jax.devices())
    leaves = ((path, with_divisible_groups(path, w, mesh)) for path, w in flat(params))
    return nested((path, jax.device_put(w, leaf_sharding(path, w, mesh))) for path, w in leaves)


def check_equals_one_device(axes, name, text, rng, caplog, **settings):
    cfg = config(text)
    params = weights(name, cfg)
    batch = ragged(cfg, rng, [(9, 2), (4, 0), (15, 1)], T=24)
    sharded = on_mesh(params, axes)
    expected = forward(params, batch.tokens, batch.images, cfg=cfg, image_counts=batch.image_counts)
    logits = forward(sharded, batch.tokens, batch.images, cfg=cfg, image_counts=batch.image_counts)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    answers = []
    for p in (params, sharded):
        with compilations(caplog) as compiled:
            answers.append(vj.generate(p, batch, cfg=cfg, max_new_tokens=20, eos=(), **settings))
        assert compiled <= Counter(prefill_batch=1, decode_chunk=1)
    np.testing.assert_array_equal(*(answer.tokens for answer in answers))


@contextlib.contextmanager
def compilations(caplog):
    """Counts how often the two programs are compiled."""
    counts = Counter()
    with jax.log_compiles(), caplog.at_level('WARNING'):
        caplog.clear()
        yield counts
    counts.update(re.findall(r'Compiling jit\((prefill_batch|decode_chunk)\)', caplog.text))


@pytest.mark.slow
@pytest.mark.parametrize(('axes', 'name', 'text'), PAIRS, ids=str)
def test_logits_and_answers_equal_those_of_one_device(axes, name, text, rng, caplog):
    settings = {'temperature': 1.0, 'seed': 5} if text in ('grouped', 'odd') else {}
    check_equals_one_device(axes, name, text, rng, caplog, **settings)


@pytest.mark.slow
def test_processors_and_filters_equal_those_of_one_device(rng, caplog):
    """Each row with its own numbers; on a mesh that divides the rows by two, one of padding joins them."""
    axes = {'data': 2, 'tensor': 2}
    settings = dict(
        temperature=[0, 1, 1.5],
        seed=[1, 2, 3],
        repetition_penalty=[1.3, 1.0, 0.8],
        frequency_penalty=0.3,
        no_repeat_ngram_size=[2, 3, 0],
        bad_words_ids=[[5], [3, 4]],
        sequence_bias={(7,): 3.0, (7, 7): -3.0},
        suppress_tokens=[9],
        top_h=0.9,
        typical_p=0.95,
        eta_cutoff=0.01,
        renormalize_logits=True,
    )
    check_equals_one_device(axes, 'plain', 'divisible', rng, caplog, **settings)


@pytest.mark.by_hand
@pytest.mark.parametrize(('axes', 'name', 'text'), [*itertools.product(MESHES, WEIGHTS, TEXTS)], ids=str)
def test_all_combinations_equal_one_device(axes, name, text, rng, caplog):
    check_equals_one_device(axes, name, text, rng, caplog)
    check_equals_one_device(axes, name, text, rng, caplog, temperature=1.0, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'plain',
        *[
            pytest.param('int8 fused', marks=pytest.mark.slow),
            pytest.param('int4', marks=pytest.mark.by_hand),
        ],
    ],
)
@pytest.mark.parametrize('axes', [{'data': 4}, {'data': 2, 'tensor': 4}], ids=str)
def test_a_step_sums_twice_per_layer_and_once_for_the_token(axes, name, rng):
    cfg = config('divisible')
    params = on_mesh(weights(name, cfg), axes)
    mesh = make_mesh(axes, devices=jax.devices())
    batch = place_rows(ragged(cfg, rng, [(9, 2), (4, 0), (15, 1), (3, 0)], T=24), mesh)
    eos = place_rows(eos_rows(cfg.eos, 4), mesh)
    state, *_ = decoding.prefill_batch(params, batch, None, eos, cfg=cfg, slots=128)
    text = decoding.decode_chunk.lower(params, state, cfg=cfg, steps=8).compile().as_text()
    found = collectives(text)  # of the whole program: its loop, and what is outside
    if 'tensor' in axes:
        assert found == Counter({'all-reduce': 2 * cfg.text.layers, 'all-gather': 1})
    else:
        assert not found


@pytest.mark.slow
def test_rows_are_taken_from_and_inserted_into_a_state_on_a_mesh(rng):
    cfg, axes = config('divisible'), {'data': 2, 'tensor': 2}
    params = on_mesh(weights('plain', cfg), axes)
    mesh = make_mesh(axes, devices=jax.devices())
    batch = place_rows(ragged(cfg, rng, [(9, 2), (4, 0), (15, 1), (3, 0)], T=24), mesh)
    state, *_ = decoding.prefill_batch(
        params, batch, None, place_rows(eos_rows((), 4), mesh), cfg=cfg, slots=128
    )
    swapped = take(state, [2, 3, 0, 1])
    again = insert(insert(swapped, 0, take(state, [0, 1])), 2, take(state, [2, 3]))
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert again.cache.k[0].sharding == state.cache.k[0].sharding
