"""The scores of the next tokens of random rows, by our processors and by those of transformers."""

from typing import Any, NamedTuple

import jax
import numpy as np

from tests.generation import peer_settings
from vipllava_jax.generation.logits.next_token import scores_of
from vipllava_jax.generation.logits.processing import processing_of
from vipllava_jax.generation.logits.repeats import repeats_of
from vipllava_jax.generation.logits.sampling import sampling_of
from vipllava_jax.generation.settings import GenerationSettings

B, S, V = 6, 24, 160  # more tokens than top-h looks at
EOS = (2, 5)


class Rows(NamedTuple):
    """Rows of ids with the logits of their next tokens."""

    logits: np.ndarray  # BV float32
    ids: np.ndarray  # BS int32, of prompt and answer
    lengths: np.ndarray  # B
    prompt_lengths: np.ndarray  # B
    limits: np.ndarray  # B, the maximum numbers of new tokens


def random_rows(seed: int) -> Rows:
    """Rows whose ids repeat and lie partly outside the vocabulary; some logits are equal and some -inf.

    Row 0 is at its first token and row 1 at its last one.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(B, V)).astype(np.float32) * rng.choice([0.5, 2, 6], size=(B, 1))
    logits[rng.random((B, V)) < 0.05] = -np.inf
    logits = np.where(rng.random((B, V)) < 0.2, np.round(logits * 2) / 2, logits)
    logits[:, EOS] = rng.normal(size=(B, 2))
    ids = rng.choice([*range(8), V - 1, V, V + 9], size=(B, S)).astype(np.int32)
    lengths = rng.integers(1, S, B)
    prompt_lengths = rng.integers(1, lengths + 1)
    prompt_lengths[0] = lengths[0]
    limits = lengths - prompt_lengths + rng.integers(2, 9, B)
    limits[1] = lengths[1] - prompt_lengths[1] + 1
    return Rows(logits.astype(np.float32), ids, lengths, prompt_lengths, limits)


@jax.jit(static_argnames=('keep', 'processors'))
def _scores(logits, ids, lengths, sampling, processing, keep=1, processors=()):
    repeats = None
    if processing is not None:
        repeats = repeats_of(ids, lengths, processing.no_repeat_ngram_size.max() - 1)
    return scores_of(logits, ids, lengths, repeats, sampling, processing, processors, keep)


def ours(rows: Rows, settings: GenerationSettings, eos: tuple[int, ...] = EOS, keep: int = 1) -> np.ndarray:
    """The scores BV."""
    processing = processing_of(settings, rows.prompt_lengths, rows.limits, eos)
    sampling = sampling_of(settings, len(rows.ids), always=processing is not None)
    return np.asarray(
        _scores(rows.logits, rows.ids, rows.lengths, sampling, processing, keep, settings.processors)
    )


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Compares scores BV: which are -inf exactly, and the others but for rounding."""
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(expected))
    np.testing.assert_allclose(got, expected, rtol=3e-6, atol=1e-6)


def theirs(rows: Rows, settings: GenerationSettings, eos: tuple[int, ...] = EOS, change: Any = None) -> Any:
    """The scores BV of transformers, each row alone; `change` is a function of its list of processors."""
    import torch

    scores = []
    for r, prompt in enumerate(rows.prompt_lengths):
        own = peer_settings.of_row(settings, r)
        processors = peer_settings.processors(own, int(prompt), int(rows.limits[r]), eos)
        if change:
            change(processors)
        ids = torch.tensor(rows.ids[r : r + 1, : rows.lengths[r]].astype(int))
        scores.append(processors(ids, torch.tensor(rows.logits[r : r + 1])))
    return torch.cat(scores).numpy()
