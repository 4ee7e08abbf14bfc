"""Answers with random settings equal those of transformers: ids and scores, on tiny random models."""

import numpy as np
import pytest

import vipllava_jax as vj
from tests import peer
from tests.generation import peer_settings
from tests.generation.random_settings import random_settings
from tests.rows import ragged
from vipllava_jax.generation.settings import GenerationSettings

pytestmark = [pytest.mark.parity, pytest.mark.slow]
KINDS = ('greedy', 'sampled', 'greedy', 'beams')
TIED = 1e-4  # two tokens whose scores differ by less may be exchanged by rounding


@pytest.fixture(scope='module')
def pair(cfg, tmp_path_factory):
    """A transformers model, and our model loaded from its folder."""
    theirs = peer.model(cfg)
    folder = tmp_path_factory.mktemp('peer')
    theirs.save_pretrained(folder)
    return theirs, vj.load(folder)


def compare(pair, seed, widths):
    """Compares the answers to four rows with 0 to 3 images, with the settings of a seed."""
    theirs, (params, cfg, *_) = pair
    rng, kind = np.random.default_rng(seed), KINDS[seed % len(KINDS)]
    rows = [*zip(rng.integers(5, 16, 4).tolist(), rng.permutation(4).tolist(), strict=True)]
    batch = ragged(cfg, rng, rows, T=32)
    fields = random_settings(rng, cfg.text.vocab, kind, widths)
    settings, eos = GenerationSettings(**fields), fields['eos']
    got = [*vj.generate(params, batch, cfg=cfg, settings=settings, logprobs=0)]
    if kind == 'sampled':
        expected = peer_settings.forced(theirs, batch, settings, eos, [answer.tokens for answer in got])
        for answer, steps in zip(got, expected, strict=True):
            chosen = steps[np.arange(len(steps)), answer.tokens]
            np.testing.assert_allclose(answer.scores, chosen, rtol=1e-4, atol=1e-4)
        return
    expected = peer_settings.generate(theirs, batch, settings, eos, cfg.pad)
    for answer, other in zip(got, expected, strict=True):
        n = same_until(answer, other)
        np.testing.assert_array_equal(answer.tokens[:n], other.tokens[:n])
        finite = np.nan_to_num(other.scores[:n])  # a growth that overflows becomes infinite in transformers
        np.testing.assert_allclose(answer.scores[:n], finite, rtol=1e-4, atol=1e-4)
        if kind == 'beams':
            np.testing.assert_allclose(answer.sequence_score, other.sequence_score, rtol=1e-4, atol=1e-4)


def same_until(answer, other):
    """The step from which on two greedy answers may differ, because two tokens are almost tied there."""
    for t, steps in enumerate(other.step_scores if other.step_scores is not None else ()):
        if t < len(answer.tokens) and answer.tokens[t] != other.tokens[t]:
            return t if steps.max() - steps[answer.tokens[t]] < TIED else None
    return None


@pytest.mark.parametrize(
    'seed', [*range(8), *(pytest.param(seed, marks=pytest.mark.by_hand) for seed in range(8, 16))]
)
def test_answers_with_random_settings(pair, seed):
    compare(pair, seed, widths=(2, 4))  # each is compiled


@pytest.mark.by_hand
@pytest.mark.parametrize('seed', range(16, 340))
def test_answers_with_more_random_settings(pair, seed):
    compare(pair, seed, widths=(2, 3, 4))
