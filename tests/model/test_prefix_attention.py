"""Rows that share the beginning of their prompts give the logits of whole prompts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.conftest import SMALL
from vipllava_jax.model import vipllava
from vipllava_jax.model.attention import attend
from vipllava_jax.model.llama import PrefixCache
from vipllava_jax.model.prefix_attention import PrefixKeys, attend_after_prefix

LENGTHS = np.array([9, 14])  # of the prefixes of two groups of three rows
GROUP, T = 3, 7


@pytest.mark.parametrize('queries', [1, 4])
@pytest.mark.parametrize('groups', [1, 2, 6])
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
    expected = attend(q, *map(jnp.asarray, whole), causal=True, offset=jnp.asarray(before + offset))
    prefix = PrefixKeys(*shared, jnp.asarray(lengths))
    found = attend_after_prefix(q, prefix, *own, offset=jnp.asarray(offset))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('queries', [1, 4])
def test_attention_in_two_parts_has_the_dtype_of_the_queries(queries):
    q, shared, own = (jnp.ones((B, S, 2, 4), jnp.bfloat16) for B, S in ((2, queries), (1, 8), (2, 8)))
    prefix = PrefixKeys(shared, shared, jnp.array([5]))
    assert attend_after_prefix(q, prefix, own, own, offset=jnp.array([1, 2])).dtype == jnp.bfloat16


@pytest.mark.slow
def test_prefill_and_decoding_after_a_prefix_equal_those_of_whole_prompts(rng):
    cfg, B = SMALL, len(LENGTHS) * GROUP
    params = vj.init(jax.random.key(0), cfg)
    first, own = rng.integers(3, 100, (2, 16)), rng.integers(3, 100, (B, T))
    n = rng.integers(3, T + 1, B)
    _, cache = vipllava.prefill(params, first, cfg=cfg, slots=16, lengths=LENGTHS)
    prefix = PrefixCache(cache.k, cache.v, jnp.asarray(LENGTHS))
    whole, before = np.zeros((B, 32), int), np.repeat(LENGTHS, GROUP)
    for row, p in enumerate(before):
        whole[row, :p], whole[row, p : p + n[row]] = first[row // GROUP, :p], own[row, : n[row]]
    logits, rest = vipllava.prefill(params, own, cfg=cfg, slots=32, lengths=n, prefix=prefix)
    expected, full = vipllava.prefill(params, whole, cfg=cfg, slots=64, lengths=before + n)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    tokens, start = jnp.argmax(expected, axis=-1), before + n
    logits, rest = vipllava.decode(params, tokens, rest, start, cfg=cfg, prefix=prefix)
    expected, full = vipllava.decode(params, tokens, full, start, cfg=cfg)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    several = jnp.asarray(rng.integers(3, 100, (B, 3)))
    logits, _ = vipllava.extend(params, several, rest, start + 1, cfg=cfg, prefix=prefix)
    expected, _ = vipllava.extend(params, several, full, start + 1, cfg=cfg)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
