"""Which tokens can be sampled, and how often they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vipllava_jax.generation.logits.filters import filter_logits
from vipllava_jax.generation.logits.sampling import Sampling, row_keys, sample_keys, select
from vipllava_jax.generation.settings import GenerationSettings


def sampling(B, temperature=1.0, top_k=0, top_p=1.0, seed=0):
    keys = jax.random.split(jax.random.key(seed), B)
    return Sampling(jnp.full(B, temperature), jnp.full(B, top_k), jnp.full(B, top_p), jnp.zeros(B), keys)


def sample(logits, sampling, positions):
    return select(logits if sampling is None else filter_logits(logits, sampling), sampling, positions)


def test_greedy_decoding_selects_the_most_likely_token(rng):
    logits = rng.normal(size=(5, 30)).astype(np.float32)
    np.testing.assert_array_equal(sample(logits, None, jnp.arange(5)), logits.argmax(axis=-1))


def test_the_key_of_a_token_depends_on_seed_row_sample_and_position(rng):
    fold, key = jax.random.fold_in, jax.random.key
    logits = rng.normal(size=(3, 30)).astype(np.float32)
    rows = Sampling(*jnp.ones((4, 3)), row_keys(GenerationSettings(seed=5), 3))
    drawn = select(logits, rows, jnp.array([7, 8, 9]))
    for row, position in enumerate((7, 8, 9)):
        assert drawn[row] == jax.random.categorical(fold(fold(key(5), row), position), logits[row])
    own = row_keys(GenerationSettings(seed=[5, 2**32 - 1]), 2)
    seeds = [key(5), key(np.uint32(2**32 - 1))]
    samples = [k for seed in seeds for k in (seed, fold(seed, 1), fold(seed, 2))]
    for keys, expected in ((own, seeds), (sample_keys(own, 3), samples), (sample_keys(own, 1), seeds)):
        np.testing.assert_array_equal(*map(jax.random.key_data, (keys, jnp.stack(expected))))


def test_rows_of_temperature_0_are_greedy_next_to_sampled_rows(rng):
    logits = rng.normal(size=(2, 30)).astype(np.float32)
    mixed = sampling(2).replace(temperature=jnp.array([0.0, 5.0]))
    sampled = np.array([sample(logits, mixed, jnp.full(2, i)) for i in range(20)])
    assert (sampled[:, 0] == logits[0].argmax()).all()
    assert len(set(sampled[:, 1])) > 5


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.floats(0.05, 0.999), st.floats(0.2, 3.0), st.integers(0, 1000))
def test_top_k_and_top_p_keep_the_tokens_of_their_definition(k, p, temperature, seed):
    logits = np.random.default_rng(seed).normal(size=20).astype(np.float32)
    got = np.isfinite(filter_logits(logits[None], sampling(1, temperature, k, p))[0])
    order = np.argsort(-logits)[:k]
    weights = np.exp((logits[order] - logits.max()) / temperature)
    before = np.cumsum(weights) / weights.sum() - weights / weights.sum()
    near = np.abs(before - p) < 1e-5  # rounding may include or exclude these
    expected = np.zeros(20, bool)
    expected[order[before < p]] = True
    ambiguous = np.zeros(20, bool)
    ambiguous[order[near]] = True
    np.testing.assert_array_equal(got | ambiguous, expected | ambiguous)


def test_sampled_tokens_follow_the_softmax(rng):
    logits = rng.normal(size=6).astype(np.float32)
    n = 20_000
    sampled = sample(jnp.broadcast_to(logits, (n, 6)), sampling(n, 0.7), jnp.zeros(n, int))
    expected = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    counts = np.bincount(sampled, minlength=6)
    chi2 = ((counts - n * expected) ** 2 / (n * expected)).sum()
    assert chi2 < 20.5  # 5 degrees of freedom: passed by 99.9 % of seeds


@pytest.mark.slow
def test_other_rows_do_not_change_a_sampled_token(rng):
    logits = rng.normal(size=(3, 50)).astype(np.float32)
    three = sampling(3)
    alone = jax.tree.map(lambda x: x[1:2], three)
    assert sample(logits, three, jnp.arange(3))[1] == sample(logits[1:2], alone, jnp.array([1]))[0]


@pytest.mark.parity
@pytest.mark.parametrize(('temperature', 'k', 'p'), [(0.7, 0, 0.6), (1.3, 5, 1.0), (0.9, 12, 0.8)])
def test_filtered_logits_are_those_of_transformers(rng, temperature, k, p):
    import torch
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = rng.normal(size=(8, 64)).astype(np.float32) * 2
    peer = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if k:
        peer.append(TopKLogitsWarper(k))
    if p < 1:
        peer.append(TopPLogitsWarper(p))
    expected = peer(None, torch.tensor(logits)).numpy()
    np.testing.assert_allclose(filter_logits(logits, sampling(8, temperature, k, p)), expected, rtol=1e-6)
