"""The processors of logits before sampling: biases, penalties and bans; the settings of each row are data.

Their order and formulas are those of transformers; the penalties of presence and frequency are OpenAI's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from vipllava_jax.generation.repeats import repeated
from vipllava_jax.generation.settings import GenerationSettings, rows_of
from vipllava_jax.generation.token_biases import TokenBiases, bias_of, token_biases
from vipllava_jax.inputs.batch import describe_array
from vipllava_jax.messages import brief
from vipllava_jax.sharding import mesh_of, pin

Processor = Callable[[Array, Array, Array], Array]  # (ids BS, lengths B, logits BV) -> logits BV


@struct.dataclass
class Processing:
    """The settings of the processors, of each row. Every leaf leads with B."""

    prompt_lengths: Array  # B int32
    limits: Array  # B int32, the maximum number of tokens of the answer
    eos: TokenBiases  # the ids that end an answer, with bias 1
    sequence_bias: TokenBiases
    repetition_penalty: Array  # B
    presence_penalty: Array  # B
    frequency_penalty: Array  # B
    no_repeat_ngram_size: Array  # B int32
    bad_words: TokenBiases
    min_new_tokens: Array  # B int32
    forced_eos: TokenBiases  # the only ids that the last token may have, with bias 1
    remove_invalid_values: Array  # B bool
    decay_start: Array  # B int32
    decay_factor: Array  # B
    suppress: TokenBiases
    begin_suppress: TokenBiases
    top_h: Array  # B, 0 for no limit
    typical_p: Array  # B
    epsilon_cutoff: Array  # B
    eta_cutoff: Array  # B
    renormalize_logits: Array  # B bool


# The numbers of each row, under the names of their settings.
COUNTS = ['min_new_tokens', 'no_repeat_ngram_size']
REALS = ['repetition_penalty', 'presence_penalty', 'frequency_penalty', 'top_h', 'typical_p']
REALS += ['epsilon_cutoff', 'eta_cutoff']
FLAGS = ['remove_invalid_values', 'renormalize_logits']
LISTS = ['bad_words_ids', 'sequence_bias', 'logit_bias', 'suppress_tokens', 'begin_suppress_tokens']
LISTS += ['forced_eos_token_id', 'exponential_decay_length_penalty', 'processors']


def processing_of(
    settings: GenerationSettings, prompt_lengths: np.ndarray, limits: np.ndarray, eos: Sequence[int]
) -> Processing | None:
    """The Processing of B rows; None if no processor is asked for, which is compiled separately.

    `eos` are the ids that end an answer. Raises ValueError if a setting has another number of rows.
    """
    B = len(limits)
    numbers: dict[str, Array] = {}
    for names, dtype in ((COUNTS, jnp.int32), (REALS, jnp.float32), (FLAGS, jnp.bool_)):
        numbers |= {name: dtype(settings.per_row(name, B, none=0)) for name in names}
    if all(is_neutral(settings, name) for name in (*numbers, *LISTS)):
        return None
    start, factor = settings.exponential_decay_length_penalty or (0, 1.0)
    banned = [(ids, -np.inf) for ids in settings.bad_words_ids or () if ids not in [(id,) for id in eos]]
    biases = [*(settings.sequence_bias or ()), *(((id,), bias) for id, bias in settings.logit_bias or ())]

    def single(ids: Any, bias: float) -> TokenBiases:
        return token_biases([((id,), bias) for id in dict.fromkeys(ids or ())], B)

    return Processing(
        prompt_lengths=jnp.int32(prompt_lengths),
        limits=jnp.int32(limits),
        eos=single(eos, 1),
        sequence_bias=token_biases(biases, B),
        bad_words=token_biases(banned, B),
        forced_eos=single(settings.forced_eos_token_id, 1),
        suppress=single(settings.suppress_tokens, -np.inf),
        begin_suppress=single(settings.begin_suppress_tokens, -np.inf),
        decay_start=jnp.int32(rows_of('exponential_decay_length_penalty[0]', start, B)),
        decay_factor=jnp.float32(rows_of('exponential_decay_length_penalty[1]', factor, B)),
        **numbers,
    )


def is_neutral(settings: GenerationSettings, name: str) -> bool:
    """Whether a setting has no effect in any row: it is empty or equals its default."""
    value = getattr(settings, name)
    default = type(settings).__dataclass_fields__[name].default
    return value in (None, ()) or (isinstance(value, tuple) and {*value} == {default}) or value == default


def process(
    logits: Array,
    ids: Array,
    lengths: Array,
    repeats: Array,
    settings: Processing,
    processors: Sequence[Processor] = (),
) -> Array:
    """Logits BV -> the logits from which the next token is selected, or filtered and sampled.

    `ids` BS are those of prompt and answer, of which the first `lengths` B count; `repeats` BS are theirs, as
    returned by `repeats_of`. `processors` are the user's, applied last.
    """
    V = logits.shape[-1]
    logits = pin(logits, 'B.', mesh_of(logits))  # whole rows: most processors read or write single tokens
    new = (lengths - settings.prompt_lengths)[:, None]  # the number of tokens of the answer so far

    def bias(biases: TokenBiases) -> Array:
        return bias_of(biases, ids, lengths, V)

    is_eos = bias(settings.eos) > 0
    logits += bias(settings.sequence_bias)
    logits = penalize(logits, ids, lengths, settings)
    n = settings.no_repeat_ngram_size
    logits = jnp.where(repeated(repeats, ids, lengths, n, V), -jnp.inf, logits)
    logits += bias(settings.bad_words)
    logits = jnp.where(is_eos & (new < settings.min_new_tokens[:, None]), -jnp.inf, logits)
    forced = bias(settings.forced_eos) > 0
    is_last = forced.any(axis=-1, keepdims=True) & (new == settings.limits[:, None] - 1)
    logits = jnp.where(is_last, jnp.where(forced, 0, -jnp.inf), logits)
    logits = jnp.where(settings.remove_invalid_values[:, None], finite(logits), logits)
    excess = jnp.maximum(new - settings.decay_start[:, None], 0)
    growth = jnp.abs(logits) * (settings.decay_factor[:, None] ** excess - 1)
    logits += jnp.where(is_eos & jnp.isfinite(logits), growth, 0)
    logits += bias(settings.suppress)
    logits += jnp.where(new == 0, bias(settings.begin_suppress), 0)
    for processor in processors:
        logits = call(processor, ids, lengths, logits)
    return logits


def call(processor: Processor, ids: Array, lengths: Array, logits: Array) -> Array:
    """The logits BV that a user's processor returns; ValueError for anything else."""
    name = getattr(processor, '__name__', None) or brief(processor)
    try:
        returned = processor(ids, lengths, logits)
    except Exception as error:
        error.add_note(f'raised by the processor {name}, which is called under jit')
        raise
    is_real = jnp.issubdtype(getattr(returned, 'dtype', bool), jnp.floating)
    if not is_real or returned.shape != logits.shape:
        raise ValueError(
            f'processors: {name} returned {describe_array(returned)}, but must return the logits, '
            f'{describe_array(logits)}'
        )
    return jnp.asarray(returned, logits.dtype)


def penalize(logits: Array, ids: Array, lengths: Array, settings: Processing) -> Array:
    """Logits BV -> the same with the penalties of repetition, presence and frequency.

    Repetition (Keskar et al., 2019) concerns the ids of prompt and answer; presence and frequency (OpenAI)
    only those of the answer.
    """
    B, V = logits.shape
    slots, rows = jnp.arange(ids.shape[1]), jnp.arange(B)[:, None]
    valid = slots < lengths[:, None]
    seen = jnp.zeros((B, V), bool).at[rows, ids].max(valid, mode='drop')
    penalty = settings.repetition_penalty[:, None]
    logits = jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
    generated = valid & (slots >= settings.prompt_lengths[:, None])
    counts = jnp.zeros((B, V), jnp.int32).at[rows, ids].add(generated, mode='drop')
    logits -= settings.presence_penalty[:, None] * (counts > 0)
    return logits - settings.frequency_penalty[:, None] * counts


def finite(logits: Array) -> Array:
    """NaN becomes 0, and infinity the largest finite number."""
    limits = jnp.finfo(logits.dtype)
    return jnp.nan_to_num(logits, nan=0.0, posinf=limits.max, neginf=limits.min)


def renormalize(logits: Array, settings: Processing) -> Array:
    """Logits BV -> log-probabilities, in the rows that ask for them."""
    return jnp.where(settings.renormalize_logits[:, None], jax.nn.log_softmax(logits, axis=-1), logits)
