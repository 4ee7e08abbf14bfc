"""Filters keep the tokens of their definitions, in the order of transformers, and samples follow them."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import chi2

from tests.generation.logits.scoring import EOS, B, V, assert_same, ours, random_rows, theirs
from vipllava_jax.generation.logits.filters import TOP_H_TOKENS, filter_logits
from vipllava_jax.generation.logits.processing import processing_of
from vipllava_jax.generation.logits.sampling import sampling_of, select
from vipllava_jax.generation.settings import GenerationSettings

ALONE = {
    'temperature': [0.3, 2.5],
    'top_h': [0.2, 0.7, 0.99],
    'top_k': [1, 7, 100, 500],
    'top_p': [0.01, 0.5, 0.99],
    'min_p': [0.0, 0.05, 0.6, 1.0],
    'typical_p': [0.05, 0.6, 0.97],
    'epsilon_cutoff': [1e-3, 0.02, 0.9],
    'eta_cutoff': [1e-4, 0.03, 0.5],
}
CASES = [(name, value) for name, values in ALONE.items() for value in values]
ALL = dict(
    temperature=[0.7, 1.5, 1.1, 2.0, 0.9, 1.2],
    top_h=[0.95, 0.9, 0.99, 0.8, 0.97, 0.9],
    top_k=[60, 40, 50, 80, 30, 20],
    top_p=[0.98, 0.9, 0.95, 0.99, 0.97, 0.85],
    min_p=[0.01, 0.1, 0.02, 0.05, 0.03, 0.2],
    typical_p=[0.9, 0.8, 0.97, 0.95, 0.85, 0.99],
    epsilon_cutoff=[0.01, 0.02, 0.005, 0.03, 0.04, 0.015],
    eta_cutoff=[0.1, 0.3, 0.05, 0.2, 0.4, 0.15],
    renormalize_logits=True,
)


def without_ties(seed):
    rows = random_rows(seed)
    noise = np.random.default_rng(seed).normal(size=(B, V)).astype(np.float32)
    return rows._replace(logits=rows.logits + 0.01 * noise)


@pytest.mark.parity
@pytest.mark.parametrize(('name', 'value'), CASES)
def test_each_filter_is_that_of_transformers(name, value):
    settings = GenerationSettings(**{'temperature': 1.0, name: value})
    beams = dataclasses.replace(settings, num_beams=2)  # transformers then keeps a token that is no end
    for seed in range(3):
        rows = without_ties(seed)
        assert_same(ours(rows, beams, keep=len(EOS) + 1), theirs(rows, beams))
        rows.logits[2, 7] = 400  # the probabilities of the others underflow, of which beams keep any two
        assert_same(ours(rows, settings), theirs(rows, settings))


@pytest.mark.parity
@pytest.mark.parametrize(('name', 'value'), CASES)
def test_equally_likely_tokens_are_kept_together(name, value):
    """At the limit of top-p and top-h, transformers keeps some of them, in an arbitrary order."""
    settings = GenerationSettings(**{'temperature': 1.0, name: value})
    for seed in range(3):
        rows = random_rows(seed)
        got, expected = ours(rows, settings), theirs(rows, settings)
        if name in ('top_p', 'top_h'):
            least = np.where(np.isneginf(expected), np.inf, expected).min(axis=-1, keepdims=True)
            expected = np.where(rows.logits == least, rows.logits, expected)
        assert_same(got, expected)


@pytest.mark.parity
def test_all_filters_together_have_the_order_of_transformers():
    """Each row with its own numbers; and the other order of two neighbours would keep other tokens."""
    settings = GenerationSettings(**ALL)
    several = [without_ties(seed) for seed in range(6)]
    expected = [theirs(rows, settings) for rows in several]
    for rows, scores in zip(several, expected, strict=True):
        assert_same(ours(rows, settings), scores)
    names = [type(p).__name__ for p in first_processors(several[0], settings)]
    assert len(names) == 10
    for at in range(1, 9):

        def swap(processors, at=at):
            processors[at : at + 2] = processors[at + 1], processors[at]

        others = [theirs(rows, settings, change=swap) for rows in several]
        equal = [np.allclose(a, b, rtol=1e-4) for a, b in zip(others, expected, strict=True)]
        assert not all(equal), names[at : at + 2]


def first_processors(rows, settings):
    lists = []
    theirs(rows, settings, change=lists.append)
    return lists[0]


def test_top_h_of_1_keeps_the_tokens_that_it_looks_at():
    logits = np.random.default_rng(0).normal(size=(B, V)).astype(np.float32)
    got = ours(random_rows(0)._replace(logits=logits), GenerationSettings(temperature=1.0, top_h=1.0))
    np.testing.assert_array_equal(got > -np.inf, logits >= np.sort(logits)[:, -TOP_H_TOKENS, None])


def test_a_neutral_row_keeps_the_bits_of_its_logits():
    """Also where probabilities underflow or their sums are not exactly 1."""
    rows = random_rows(3)
    rows.logits[-1] = np.linspace(-300, 300, V)
    rows.logits[-2] = np.random.default_rng(0).normal(size=V)
    others = np.arange(B) < B - 2
    for keep in (1, 3):
        got = ours(
            rows,
            GenerationSettings(
                temperature=np.where(others, 0.7, 1),
                top_k=np.where(others, 7, 0),
                top_p=np.where(others, 0.9, 1),
                min_p=np.where(others, 0.1, 0),
                typical_p=np.where(others, 0.9, 1),
                epsilon_cutoff=np.where(others, 0.1, 0),
                eta_cutoff=np.where(others, 0.1, 0),
            ),
            keep=keep,
        )
        assert np.isneginf(got[:-2]).any(axis=-1).all()
        np.testing.assert_array_equal(got[-2:].view(np.uint32), rows.logits[-2:].view(np.uint32))


def kept(p, name, value):
    """The tokens with probabilities p that a filter keeps, by its definition."""
    surprise = -np.log(p)
    H = (p * surprise).sum()
    if name == 'top_k':
        return np.argsort(-p)[:value]
    if name == 'top_h':
        order = np.argsort(-p)
        return order[: max(1, (np.cumsum((p * surprise)[order]) <= value * H).sum())]
    if name in ('top_p', 'typical_p'):
        order = np.argsort(-p if name == 'top_p' else abs(surprise - H))
        return order[: np.searchsorted(np.cumsum(p[order]), value) + 1]
    least = {
        'min_p': value * p.max(),
        'epsilon_cutoff': value,
        'eta_cutoff': min(value, np.sqrt(value) * np.exp(-H)),
        'temperature': 0,
    }[name]
    return np.flatnonzero((p >= least) | (p == p.max()))


@pytest.mark.slow
def test_samples_follow_the_exact_probabilities_of_each_filter():
    """Chi-square tests of all filters in one call: rows differ in their setting or their random numbers."""
    logits, n = np.random.default_rng(1).normal(size=12).astype(np.float32) * 1.5, 2500
    neutral = dict(temperature=0.8, top_h=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0)
    neutral |= dict(epsilon_cutoff=0.0, eta_cutoff=0.0)
    fields = {name: [dict(neutral, **{case: value})[name] for case, value in CASES] for name in neutral}
    settings = GenerationSettings(**{name: np.repeat(x, n) for name, x in fields.items()}, seed=0)
    B = n * len(CASES)
    counts = np.ones(B, int)
    sampling, processing = sampling_of(settings, B), processing_of(settings, counts, counts, ())
    scores = filter_logits(np.broadcast_to(logits, (B, len(logits))), sampling, processing)
    tokens = np.asarray(select(scores, sampling, np.arange(B))).reshape(len(CASES), n)
    for (name, value), sampled in zip(CASES, tokens, strict=True):
        p = np.exp(logits / dict(neutral, **{name: value})['temperature'], dtype=float)
        p /= p.sum()
        few = kept(p, name, value)
        expected = n * p[few] / p[few].sum()
        found = np.bincount(sampled, minlength=len(p))
        assert found[few].sum() == n, (name, value)
        statistic = ((found[few] - expected) ** 2 / expected).sum()
        assert len(few) == 1 or chi2.sf(statistic, len(few) - 1) > 1e-4, (name, value)
