"""The two programs are compiled once, ahead if asked for, and update the cache in place."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import vipllava_jax as vj
from tests.compilations import compilations
from tests.rows import ragged
from vipllava_jax.generation import decoding
from vipllava_jax.generation.logits.sampling import sampling_of
from vipllava_jax.generation.state import eos_rows

ROWS = [(9, 2), (4, 0), (15, 1)]


@pytest.fixture
def batch(cfg, rng):
    return ragged(cfg, rng, ROWS, T=32)


@pytest.fixture(scope='module')
def model(folder):
    return vj.load(folder)


def test_another_length_compiles_nothing(model):
    def answer(question):
        batch = model.processor(question)
        vj.generate(model.params, batch, cfg=model.cfg, max_new_tokens=9)
        return batch.lengths[0]

    short = answer('Hi')
    compiled = decoding.prefill_batch._cache_size(), decoding.decode_chunk._cache_size()
    assert answer('What is it?') > short
    assert (decoding.prefill_batch._cache_size(), decoding.decode_chunk._cache_size()) == compiled
    answer('What is it? ' * 20)  # the next bucket
    assert decoding.prefill_batch._cache_size() == compiled[0] + 1


@pytest.mark.parametrize('settings', [{}, {'temperature': 1.0, 'seed': 0, 'eos': (3, 5)}])
def test_the_programs_compiled_for_shapes_are_those_that_run(params, cfg, batch, settings):
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params)
    params = jax.device_put(params, sharding)
    settings = dict(settings, cfg=cfg, max_new_tokens=150)  # a number of slots that no other test uses
    with compilations('prefill_batch|decode_chunk') as compiled:
        decoding.compile_for(shapes, batch, **settings)
        assert len(compiled) == 2
        vj.generate(params, batch, **settings)
        assert len(compiled) == 2


def test_half_precision_keeps_its_dtype(cfg, batch):
    params = vj.abstract(cfg, jnp.bfloat16)
    eos = eos_rows(cfg.eos, len(ROWS))
    state, *_ = jax.eval_shape(partial(decoding.prefill_batch, cfg=cfg, slots=64), params, batch, None, eos)
    state, _ = jax.eval_shape(partial(decoding.decode_chunk, cfg=cfg, steps=2), params, state)
    assert {x.dtype for x in (*state.cache.k, *state.cache.v)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_a_chunk_updates_the_cache_in_place(params, cfg, batch, temperature):
    settings = vj.GenerationSettings(temperature=temperature, seed=0)
    eos = eos_rows(cfg.eos, len(ROWS))
    state, *_ = jax.eval_shape(
        partial(decoding.prefill_batch, cfg=cfg, slots=64),
        params,
        batch,
        sampling_of(settings, len(ROWS)),
        eos,
    )
    compiled = decoding.decode_chunk.lower(params, state, cfg=cfg, steps=8).compile()
    cache = state.cache.k[0]
    size = cache.size * cache.dtype.itemsize * 2 * cfg.text.layers
    assert compiled.memory_analysis().alias_size_in_bytes >= size
    shape = f'f32[{",".join(map(str, cache.shape))}]'
    copies = [
        line
        for line in compiled.as_text().splitlines()
        if re.search(rf'= {re.escape(shape)}\S* copy\(', line)
    ]
    assert not copies
