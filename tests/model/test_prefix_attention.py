"""Rows that share the beginning of their prompts give the logits of whole prompts."""

import enum
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

import vipllava_jax as vj
from tests.conftest import SMALL
from vipllava_jax.model import prefix_attention, vipllava
from vipllava_jax.model.attention import attend
from vipllava_jax.model.llama import PrefixCache
from vipllava_jax.model.prefix_attention import PrefixKeys, attend_after_prefix, private_cudnn

LENGTHS = np.array([9, 14])  # of the prefixes of two groups of three rows
GROUP, T = 3, 7
prefill = jax.jit(vipllava.prefill, static_argnames=('cfg', 'slots'))
decode, extend = (jax.jit(f, static_argnames='cfg') for f in (vipllava.decode, vipllava.extend))


@pytest.mark.parametrize(('groups', 'queries'), [(1, 4), (2, 1), (6, 4)])
def test_attention_in_two_parts_equals_attention_to_the_whole(rng, groups, queries):
    B, S, N, K, H = 6, 16, 6, 2, 8
    lengths, offset = rng.integers(1, S, groups), rng.integers(0, S - queries, B)
    q = jnp.asarray(rng.normal(size=(B, queries, N, H)), jnp.float32)
    shared = [jnp.asarray(rng.normal(size=(groups, S, K, H)), jnp.float32) for _ in 'kv']
    own = [jnp.asarray(rng.normal(size=(B, S, K, H)), jnp.float32) for _ in 'kv']
    whole = [np.zeros((B, 2 * S, K, H), np.float32) for _ in 'kv']
    before = np.repeat(lengths, B // groups)
    for row, n in enumerate(before):
        for x, a, b in zip(whole, shared, own, strict=True):
            x[row, :n], x[row, n : n + S] = a[row // (B // groups), :n], b[row]
    expected = jax.jit(partial(attend, causal=True))(q, *whole, offset=before + offset)
    prefix = PrefixKeys(*shared, jnp.asarray(lengths))
    found = jax.jit(attend_after_prefix)(q, prefix, *own, offset=offset)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def attention_of(queries, implementation, offset=True):
    """The shape of the attention of two rows in bfloat16."""
    q, shared, own = (
        jax.ShapeDtypeStruct((B, S, 2, 8), jnp.bfloat16) for B, S in ((2, queries), (1, 8), (2, 8))
    )
    ints = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32)

    def run(q, shared, own, lengths, offset):
        prefix = PrefixKeys(shared, shared, lengths)
        return attend_after_prefix(q, prefix, own, own, offset=offset, implementation=implementation)

    return jax.eval_shape(run, q, shared, own, ints[0], ints[1] if offset else None)


@pytest.mark.parametrize('queries', [1, 4])
def test_attention_in_two_parts_has_the_dtype_of_the_queries(queries):
    assert attention_of(queries, 'xla').dtype == jnp.bfloat16


@pytest.fixture
def cudnn(monkeypatch):
    """jax's private functions for cuDNN, which trace as on a GPU."""
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 92000)
    private_cudnn.cache_clear()
    yield fused_attention_stablehlo
    private_cudnn.cache_clear()


def test_this_jax_has_a_private_function_whose_log_sum_exp_is_float32(cudnn, monkeypatch):
    attention, masks = private_cudnn()
    found = []

    def traced(*args, **settings):
        found.append(attention(*args, **settings))
        return found[-1]

    monkeypatch.setattr(prefix_attention, 'private_cudnn', lambda: (traced, masks))
    for queries, offset in ((1, True), (8, False)):
        assert attention_of(queries, 'cudnn', offset).shape == (2, queries, 2, 8)
    assert [log_sum.shape for _, log_sum in found] == [(1, 2, 2), (2, 2, 1), (1, 2, 16), (2, 2, 8)]
    assert {log_sum.dtype for _, log_sum in found} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ('name', 'other'),
    [
        ('dot_product_attention', None),
        ('dot_product_attention', lambda query, key, value, scale: (query, None)),
        ('MaskType', None),
        ('MaskType', enum.Enum('MaskType', ['CAUSAL'])),
    ],
)
def test_xla_attends_if_this_jax_has_another_private_function(cudnn, monkeypatch, name, other):
    if other is None:
        monkeypatch.delattr(cudnn, name)
    else:
        monkeypatch.setattr(cudnn, name, other)
    assert private_cudnn() is None
    assert attention_of(1, 'cudnn').shape == (2, 1, 2, 8)


def test_xla_attends_if_this_jax_has_no_such_module(cudnn, monkeypatch):
    monkeypatch.setitem(sys.modules, cudnn.__name__, None)
    assert private_cudnn() is None
    assert attention_of(1, 'cudnn').shape == (2, 1, 2, 8)


@pytest.mark.slow
def test_prefill_and_decoding_after_a_prefix_equal_those_of_whole_prompts(rng):
    cfg, B = SMALL, len(LENGTHS) * GROUP
    params = vj.init(jax.random.key(0), cfg)
    first, own = rng.integers(3, 100, (2, 16)), rng.integers(3, 100, (B, T))
    n = rng.integers(3, T + 1, B)
    _, cache = prefill(params, first, cfg=cfg, slots=16, lengths=LENGTHS)
    prefix = PrefixCache(cache.k, cache.v, jnp.asarray(LENGTHS))
    whole, before = np.zeros((B, 32), int), np.repeat(LENGTHS, GROUP)
    for row, p in enumerate(before):
        whole[row, :p], whole[row, p : p + n[row]] = first[row // GROUP, :p], own[row, : n[row]]
    logits, rest = prefill(params, own, cfg=cfg, slots=32, lengths=n, prefix=prefix)
    expected, full = prefill(params, whole, cfg=cfg, slots=64, lengths=before + n)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    tokens, start = jnp.argmax(expected, axis=-1), before + n
    logits, rest = decode(params, tokens, rest, start, cfg=cfg, prefix=prefix)
    expected, full = decode(params, tokens, full, start, cfg=cfg)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    several = jnp.asarray(rng.integers(3, 100, (B, 3)))
    logits, _ = extend(params, several, rest, start + 1, cfg=cfg, prefix=prefix)
    expected, _ = extend(params, several, full, start + 1, cfg=cfg)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
