"""The processors of logits before sampling: biases, penalties and bans; the settings of each row are data.

Their order and formulas are those of transformers; the penalties of presence and frequency are OpenAI's.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from vipllava_jax.generation.logits.id_sets import contains, id_set
from vipllava_jax.generation.logits.repeats import repeated
from vipllava_jax.generation.logits.token_biases import TokenBiases, bias_of, token_biases
from vipllava_jax.generation.settings import GenerationSettings, rows_of
from vipllava_jax.inputs.batch import describe_array
from vipllava_jax.messages import brief
from vipllava_jax.sharding import mesh_of, pin

Processor = Callable[[Array, Array, Array], Array]  # (ids BS, lengths B, logits BV) -> logits BV
LARGEST_GROWTH = 88.0  # its exponential is finite in float32


@struct.dataclass
class Processing:
    """The settings of the processors of each row. Every leaf leads with B."""

    prompt_lengths: Array  # B int32
    limits: Array  # B int32, the maximum number of tokens of the answer
    eos: Array  # BW int32, the ids that end an answer, as returned by `id_set`
    sequence_bias: TokenBiases
    repetition_penalty: Array  # B
    presence_penalty: Array  # B
    frequency_penalty: Array  # B
    no_repeat_ngram_size: Array  # B int32
    bad_words: TokenBiases
    min_new_tokens: Array  # B int32
    forced_eos: Array  # BW int32, the only ids that the last token may have
    remove_invalid_values: Array  # B bool
    decay_start: Array  # B int32
    decay_rate: Array  # B, the logarithm of the factor
    suppress: Array  # BW int32
    begin_suppress: Array  # BW int32
    top_h: Array  # B, 0 for no limit
    typical_p: Array  # B
    epsilon_cutoff: Array  # B
    eta_cutoff: Array  # B
    renormalize_logits: Array  # B bool


# The settings that are one number per row, and the number of each that has no effect.
NUMBERS: dict[str, bool | int | float] = {
    'repetition_penalty': 1.0,
    'presence_penalty': 0.0,
    'frequency_penalty': 0.0,
    'no_repeat_ngram_size': 0,
    'min_new_tokens': 0,
    'remove_invalid_values': False,
    'top_h': 0.0,
    'typical_p': 1.0,
    'epsilon_cutoff': 0.0,
    'eta_cutoff': 0.0,
    'renormalize_logits': False,
}
DTYPES = {bool: jnp.bool_, int: jnp.int32, float: jnp.float32}
# The other settings of processors; an empty one has no effect.
LISTS = ['bad_words_ids', 'sequence_bias', 'logit_bias', 'suppress_tokens', 'begin_suppress_tokens']
LISTS += ['forced_eos_token_id', 'exponential_decay_length_penalty', 'processors']


def processing_of(
    settings: GenerationSettings,
    prompt_lengths: np.ndarray,
    limits: np.ndarray,
    eos: Sequence[int],
    always: bool = False,
) -> Processing | None:
    """The settings of the processors for B rows; None if none has an effect, which is compiled separately.

    `eos` are the ids that end an answer. With `always`, rows without processors get neutral settings. Raises
    ValueError if a setting has another number of rows, or if the last token would be forced and suppressed.
    """
    B = len(limits)
    check_forced(settings, limits)
    numbers = {name: settings.per_row(name, B, none=neutral) for name, neutral in NUMBERS.items()}
    start, factor = settings.exponential_decay_length_penalty or (0, 1.0)
    starts = rows_of('exponential_decay_length_penalty[0]', start, B)
    factors = rows_of('exponential_decay_length_penalty[1]', factor, B)
    if not always and not has_effect(settings, B):
        return None
    banned = [(ids, -np.inf) for ids in settings.bad_words_ids or () if ids not in [(id,) for id in eos]]
    biases = [*(settings.sequence_bias or ()), *(((id,), bias) for id, bias in settings.logit_bias or ())]
    return Processing(
        prompt_lengths=jnp.int32(prompt_lengths),
        limits=jnp.int32(limits),
        eos=id_set(eos, B),
        sequence_bias=token_biases(biases, B),
        bad_words=token_biases(banned, B),
        forced_eos=id_set(settings.forced_eos_token_id or (), B),
        suppress=id_set(settings.suppress_tokens or (), B),
        begin_suppress=id_set(settings.begin_suppress_tokens or (), B),
        decay_start=jnp.int32(starts),
        decay_rate=jnp.float32(np.log(factors)),
        **{name: jnp.asarray(numbers[name], DTYPES[type(neutral)]) for name, neutral in NUMBERS.items()},
    )


def has_effect(settings: GenerationSettings, B: int) -> bool:
    """Whether some row of B has a processor; ValueError if a setting has another number of rows."""
    numbers = {name: settings.per_row(name, B, none=neutral) for name, neutral in NUMBERS.items()}
    if any((numbers[name] != neutral).any() for name, neutral in NUMBERS.items()):
        return True
    return any(getattr(settings, name) for name in LISTS)


def check_forced(settings: GenerationSettings, limits: np.ndarray) -> None:
    """Raises ValueError if the last token is both forced and suppressed, which excludes every token."""
    forced = {*np.atleast_1d(settings.forced_eos_token_id or ()).tolist()}
    suppressed = {'suppress_tokens': {*np.atleast_1d(settings.suppress_tokens or ()).tolist()}}
    if (limits == 1).any():  # the last token is also the first
        begin = {*np.atleast_1d(settings.begin_suppress_tokens or ()).tolist()}
        suppressed['begin_suppress_tokens'] = begin | suppressed['suppress_tokens']
    for name, excluded in suppressed.items():
        if forced and forced <= excluded:
            ids = ', '.join(map(str, sorted(forced)))
            raise ValueError(
                f'forced_eos_token_id is {ids}, which {name} excludes: remove it from one of them'
            )


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
    is_eos = contains(settings.eos, V)
    logits += bias_of(settings.sequence_bias, ids, lengths, V)
    logits = penalize(logits, ids, lengths, settings)
    logits = ban(logits, repeated(repeats, ids, lengths, settings.no_repeat_ngram_size, V))
    logits += bias_of(settings.bad_words, ids, lengths, V)
    logits = ban(logits, is_eos & (new < settings.min_new_tokens[:, None]))
    logits = force_eos(logits, new, settings)
    logits = jnp.where(settings.remove_invalid_values[:, None], finite(logits), logits)
    logits = jnp.where(is_eos, favor(logits, new, settings), logits)
    logits = ban(logits, contains(settings.suppress, V))
    logits = ban(logits, contains(settings.begin_suppress, V) & (new == 0))
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


def ban(logits: Array, tokens: Array) -> Array:
    """Logits BV -> the same with -inf for some tokens BV."""
    return jnp.where(tokens, -jnp.inf, logits)


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


def force_eos(logits: Array, new: Array, settings: Processing) -> Array:
    """Logits BV -> the same; where the last token comes next, 0 for the forced ids and -inf for all others.

    `new` B1 is the number of tokens of the answer so far.
    """
    forced = contains(settings.forced_eos, logits.shape[-1])
    is_last = forced.any(axis=-1, keepdims=True) & (new == settings.limits[:, None] - 1)
    return jnp.where(is_last, jnp.where(forced, 0, -jnp.inf), logits)


def finite(logits: Array) -> Array:
    """Logits BV -> the same with 0 for NaN, and the largest finite number for infinity."""
    limits = jnp.finfo(logits.dtype)
    return jnp.nan_to_num(logits, nan=0.0, posinf=limits.max, neginf=limits.min)


def favor(logits: Array, new: Array, settings: Processing) -> Array:
    """Logits BV -> logits + |logits|·(factor ** excess - 1), excess the number of tokens beyond the start.

    `new` B1 is the number of tokens of the answer so far. NaN and infinity stay as they are, and what would
    overflow becomes the largest finite number.
    """
    excess = jnp.maximum(new - settings.decay_start[:, None], 0)
    growth = jnp.expm1(jnp.minimum(settings.decay_rate[:, None] * excess, LARGEST_GROWTH))
    favored = jnp.minimum(logits + jnp.abs(logits) * growth, jnp.finfo(logits.dtype).max)
    return jnp.where(jnp.isfinite(logits), favored, logits)


def renormalize(logits: Array, settings: Processing) -> Array:
    """Logits BV -> log-probabilities, in the rows that ask for them."""
    return jnp.where(settings.renormalize_logits[:, None], jax.nn.log_softmax(logits, axis=-1), logits)
