"""Checks the arguments of generation before anything runs, and prepares the arguments of its programs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vipllava_jax.config import Config
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.processing import Processing, processing_of
from vipllava_jax.generation.sampling import Sampling, sampling_of
from vipllava_jax.generation.settings import DEFAULT_NEW_TOKENS, GenerationSettings, check_lengths
from vipllava_jax.generation.state import eos_rows
from vipllava_jax.generation.stopping import AnswerEnds, RowStops, end_ids, eos_ids
from vipllava_jax.inputs.batch import Batch, bucket
from vipllava_jax.inputs.padding import round_up
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.messages import brief
from vipllava_jax.model.input_checks import check_inputs
from vipllava_jax.model.vipllava import Params


class GenerationPlan(NamedTuple):
    """The arguments of the programs, and where the answers end."""

    settings: GenerationSettings
    sampling: Sampling | None  # B rows
    eos: np.ndarray  # BE
    processing: Processing | None  # B rows
    slots: int
    top: int | None  # the number of likeliest tokens that the programs report; None: no log-probabilities
    ends: AnswerEnds  # of B·n answers, the n of a row one after the other


def plan(
    params: Params, batch: Batch, cfg: Config, settings: GenerationSettings, processor: Processor | None
) -> GenerationPlan:
    """The plan for a batch; raises TypeError and ValueError as `stream` documents."""
    if isinstance(params, Model):
        raise TypeError('params is a Model: pass model.params')
    if not isinstance(batch, Batch):
        raise TypeError(f'batch is {brief(batch)}, expected a Batch, as model.processor returns')
    B, T = batch.tokens.shape
    check_inputs(batch.tokens, batch.images, batch.image_counts, cfg, batch.lengths)
    check_ids(settings, cfg)
    ends_with = end_ids(settings, cfg, processor)
    limits = max_new_tokens_for(batch, cfg, settings.max_new_tokens)
    processing = processing_of(settings, batch.lengths, limits, eos_ids(settings, cfg))
    sampling = sampling_of(settings, B, always=processing is not None)
    n = settings.num_return_sequences
    check_lengths(settings.per_row('min_new_tokens', B, none=0), limits)
    stops = settings.stop if processor else ()
    ends = AnswerEnds(
        np.repeat(limits, n),
        ends_with,
        cfg.pad,
        [RowStops(processor, stops) for _ in range(B * n)] if processor and stops else [],
        np.repeat(settings.per_row('max_time', B, none=np.inf), n),
    )
    top = settings.logprobs and min(round_up(settings.logprobs, 8), cfg.text.vocab)
    slots = bucket(T + int(limits.max()))
    return GenerationPlan(settings, sampling, eos_rows(ends_with, B), processing, slots, top, ends)


def check_ids(settings: GenerationSettings, cfg: Config) -> None:
    """Raises ValueError, naming the setting, for an id or a number of tokens that the vocabulary lacks."""
    V = cfg.text.vocab
    sequences = {
        'bad_words_ids': settings.bad_words_ids or (),
        'sequence_bias': [ids for ids, _ in settings.sequence_bias or ()],
        'logit_bias': [[id for id, _ in settings.logit_bias or ()]],
        'suppress_tokens': [settings.suppress_tokens or ()],
        'begin_suppress_tokens': [settings.begin_suppress_tokens or ()],
        'forced_eos_token_id': [settings.forced_eos_token_id or ()],
    }
    for name, several in sequences.items():
        largest = max((id for ids in several for id in ids), default=0)
        if largest >= V:
            raise ValueError(f'{name} holds the id {largest}, but the vocabulary ends at {V - 1}')
    if (settings.logprobs or 0) > V:
        raise ValueError(f'logprobs is {settings.logprobs}, but the vocabulary has {V} tokens')


def max_new_tokens_for(batch: Batch, cfg: Config, max_new_tokens: int | Sequence[int] | None) -> np.ndarray:
    """The maximum number of tokens of each answer, B; raises ValueError if the context is too short for it.

    None is 512, or what the context leaves to the longest prompt if that is less.
    """
    B, context = len(batch.lengths), cfg.text.context
    if max_new_tokens is None:
        max_new_tokens = min(DEFAULT_NEW_TOKENS, max(context - int(batch.lengths.max()), 1))
    limits = GenerationSettings(max_new_tokens=max_new_tokens).per_row('max_new_tokens', B)
    row = (batch.lengths + limits).argmax()
    length, new = int(batch.lengths[row]), int(limits[row])
    left = context - length
    if new > left:
        advice = f'request at most {left} new tokens' if left > 0 else 'shorten the prompt'
        raise ValueError(
            f'row {row}: a prompt of {length} tokens and {new} new ones exceed the context of {context}: '
            f'{advice}'
        )
    return limits
