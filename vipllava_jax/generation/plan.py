"""Checks the arguments of generation before anything runs, and prepares the arguments of its programs."""

import dataclasses
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from vipllava_jax.config import Config
from vipllava_jax.generation.logits.processing import Processing, processing_of
from vipllava_jax.generation.logits.sampling import Sampling, sampling_of
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.prefix import Prefix, PrefixArrays
from vipllava_jax.generation.rows import of_first_process
from vipllava_jax.generation.setting_checks import NUMBERS
from vipllava_jax.generation.settings import DEFAULT_NEW_TOKENS, GenerationSettings, check_lengths, rows_of
from vipllava_jax.generation.state import eos_rows
from vipllava_jax.generation.stopping import AnswerEnds, RowStops, eos_ids, stop_ids
from vipllava_jax.inputs.batch import Batch, bucket
from vipllava_jax.inputs.padding import pad_ids, power_of_two, round_up
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.messages import brief
from vipllava_jax.model.input_checks import check_inputs
from vipllava_jax.model.llama import PrefixCache
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of

# Keys and values that rows share are stored once if that saves copies of this many slots. Reading them apart
# takes more kernels per layer, on an H100 for as long as reading 3,000 slots of the 7B takes.
ENOUGH_SAVED = 3000


class GenerationPlan(NamedTuple):
    """The arguments of the programs, and where the answers end."""

    settings: GenerationSettings
    cfg: Config
    batch: Batch  # B rows, as those of the next three; what follows the prefix, if there is one
    sampling: Sampling | None
    eos: np.ndarray  # BE
    processing: Processing | None
    slots: int
    top: int | None  # the number of likeliest tokens that the programs report; None: no log-probabilities
    ends: AnswerEnds  # of B·n answers, the n of a row one after the other
    prefix: Prefix | None  # of all rows
    share_keys: bool  # whether rows read those that they share once: of the prefix, or of a prompt's copies

    @property
    def rows(self) -> tuple[Batch, Sampling | None, np.ndarray, Processing | None]:
        """The arguments of the prefill after the weights, which a mesh divides by rows."""
        return self.batch, self.sampling, self.eos, self.processing

    @property
    def prefix_arrays(self) -> PrefixArrays | None:
        """The prefix that the prefill takes."""
        return None if self.prefix is None else self.prefix.arrays

    def decoding_prefix(self, prompts: PrefixCache | None) -> PrefixCache | None:
        """What decoding reads once for several rows: the prefix, or the prompts that the prefill returns."""
        return self.prefix.arrays.cache if self.prefix and self.share_keys else prompts

    @property
    def static(self) -> dict[str, Any]:
        """The static arguments that both programs take."""
        return {'cfg': self.cfg, 'top': self.top, 'processors': self.settings.processors}

    @property
    def shapes(self) -> dict[str, Any]:
        """The static arguments of the prefill alone."""
        samples = self.settings.num_return_sequences
        return {'slots': self.slots, 'samples': samples, 'share_keys': self.share_keys}


def make_plan(
    params: Params,
    batch: Batch,
    cfg: Config,
    settings: GenerationSettings,
    processor: Processor | None,
    prefix: Prefix | None = None,
) -> GenerationPlan:
    """The plan for a batch; raises TypeError and ValueError as `stream` documents."""
    check_types(params, batch, processor, prefix)
    B = len(batch.tokens)
    check_inputs(batch.tokens, batch.images, batch.image_counts, cfg, batch.lengths)
    check_ids(settings, cfg)
    for name in NUMBERS:  # also those that these settings do not use
        settings.per_row(name, B, none=0)
    settings = with_seed(settings, mesh_of(params))
    eos, single = eos_ids(settings, cfg), stop_ids(settings, processor)
    limits = max_new_tokens_for(batch, cfg, settings.max_new_tokens)
    processing = processing_of(settings, batch.lengths, limits, eos)
    sampling = sampling_of(settings, B, always=processing is not None)
    if settings.prompt_lookup_num_tokens:
        check_greedy(settings, sampling is None and processing is None)
    n = settings.num_return_sequences
    check_lengths(settings.per_row('min_new_tokens', B, none=0), limits)
    stops = settings.stop if processor else ()
    ends = AnswerEnds(
        np.repeat(limits, n),
        eos,
        cfg.pad,
        [RowStops(processor, stops) for _ in range(B * n)] if processor and stops else [],
        np.repeat(settings.per_row('max_time', B, none=np.inf), n),
        stop_ids=single,
    )
    top = settings.logprobs and min(round_up(settings.logprobs, 8), cfg.text.vocab)
    share_keys = _saved_slots(batch, prefix, max(n, settings.num_beams)) >= ENOUGH_SAVED
    rest, slots = _rest_and_slots(batch, prefix, int(limits.max()), share_keys, cfg)
    rows = rest, sampling, eos_rows((*eos, *single), B), processing
    return GenerationPlan(settings, cfg, *rows, slots, top, ends, prefix, share_keys)


def _saved_slots(batch: Batch, prefix: Prefix | None, copies: int) -> int:
    """The slots saved if rows have no copies of what they share: the prefix, or a prompt in `copies` rows.

    They are counted with padding, so that prompts of other lengths run the same programs.
    """
    B, T = batch.tokens.shape
    return B * (copies - 1) * T if prefix is None else (B * copies - 1) * prefix.arrays.slots


def _rest_and_slots(
    batch: Batch, prefix: Prefix | None, limit: int, share_keys: bool, cfg: Config
) -> tuple[Batch, int]:
    """What follows the prefix in each row, and the number of slots for it and `limit` new tokens.

    Rows that have their own copies of a prefix have slots for all tokens. Their number, and T, are powers of
    two, so that the turns of a conversation need few compilations.
    """
    if prefix is None:
        return batch, bucket(batch.tokens.shape[1] + limit)
    prefix.check_model(cfg)
    rest = prefix.remainder(batch, cfg.pad)
    T = rest.tokens.shape[1]
    if share_keys:
        return rest, bucket(T + limit)
    wider = pad_ids([*rest.tokens], power_of_two(T), cfg.pad)
    slots = power_of_two(len(prefix) + int(rest.lengths.max()) + limit)  # padding past the last is dropped
    return rest._replace(tokens=wider), max(slots, bucket(prefix.arrays.slots))


def check_types(
    params: Params, batch: Batch, processor: Processor | None, prefix: Prefix | None = None
) -> None:
    """Raises TypeError for arguments that are something else."""
    if isinstance(params, Model):
        raise TypeError('params is a Model: pass model.params')
    if not isinstance(batch, Batch):
        raise TypeError(f'batch is {brief(batch)}, expected a Batch, as model.processor returns')
    if processor is not None and not hasattr(processor, 'text_stream'):
        raise TypeError(f'processor is {brief(processor)}, expected the Processor model.processor')
    if prefix is not None and not isinstance(prefix, Prefix):
        raise TypeError(f'prefix is {brief(prefix)}, expected a Prefix, as vj.prefix returns')


def with_seed(settings: GenerationSettings, mesh: Mesh | None) -> GenerationSettings:
    """The settings with a random seed, the same in all processes, if they sample and have none."""
    if settings.seed is not None or not np.any(settings.temperature):
        return settings
    return dataclasses.replace(settings, seed=of_first_process(secrets.randbits(32), mesh))


def check_greedy(settings: GenerationSettings, is_greedy: bool) -> None:
    """Raises ValueError if prompt lookup, which checks greedy tokens, is asked for with other settings."""
    if not is_greedy or settings.num_beams > 1 or settings.logprobs is not None:
        raise ValueError(
            f'prompt_lookup_num_tokens is {settings.prompt_lookup_num_tokens}, but it is for greedy decoding '
            'alone: leave out temperature, processors, num_beams and logprobs, or set it to 0'
        )


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
    limits = rows_of('max_new_tokens', max_new_tokens, B)
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
