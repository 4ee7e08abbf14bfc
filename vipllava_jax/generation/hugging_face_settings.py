"""Reads the settings of generation in generation_config.json."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vipllava_jax.generation.refused_settings import REFUSED
from vipllava_jax.generation.settings import DEFAULT_NEW_TOKENS, GenerationSettings
from vipllava_jax.json_fields import LARGEST_NUMBER, Fields
from vipllava_jax.messages import printable

MAX_IDS = 1 << 16  # the maximum length of a list of ids
MAX_SEQUENCES, MAX_SEQUENCE = 4096, 64  # the same for a list of sequences, and for one of them
MAX_STRINGS, MAX_STRING = 64, 1000

WHOLE = ('min_new_tokens', 'top_k', 'no_repeat_ngram_size', 'num_return_sequences', 'num_beams')
REAL = (
    *('temperature', 'top_p', 'min_p', 'typical_p', 'epsilon_cutoff', 'eta_cutoff', 'top_h', 'max_time'),
    *('repetition_penalty', 'length_penalty'),
)
FLAGS = ('remove_invalid_values', 'renormalize_logits')
IDS = ('suppress_tokens', 'begin_suppress_tokens', 'forced_eos_token_id')

# Fields that change answers and have no counterpart, with the values at which they have no effect.
WITHOUT_COUNTERPART: dict[str, tuple[Any, ...]] = {
    'guidance_scale': (1,),
    'forced_bos_token_id': (),
    'forced_decoder_ids': ([],),
    'min_length': (0,),
    'num_beam_groups': (1,),
    'diversity_penalty': (0,),
    'penalty_alpha': (0,),
    'encoder_repetition_penalty': (1,),
    'encoder_no_repeat_ngram_size': (0,),
    'constraints': ([],),
    'force_words_ids': ([],),
    'dola_layers': ([],),
    'token_healing': (False,),
    'watermarking_config': (),
}


def settings_from_hugging_face(generation: Mapping[str, Any], folder: str = '') -> GenerationSettings:
    """The settings in the content of a generation_config.json.

    As in transformers, `do_sample` is false unless the file says otherwise, and then the temperature is 0.
    Fields that are missing or null get the defaults of GenerationSettings. `max_length`, which includes the
    prompt, only lowers the default of `max_new_tokens`. One warning names the fields that have no counterpart
    although they change answers, and those that contradict others and are therefore changed. Raises
    ValueError, naming the field, if one is malformed. Both begin with the `folder`.
    """
    fields = Fields(generation, f'{folder}{": " if folder else ""}generation_config.json: ')
    found = {name: read(fields, name) for name, read in READ.items() if fields.get(name) is not None}
    found |= {'max_new_tokens': _max_new_tokens(fields), 'eos': _eos(fields), 'stop': _strings(fields)}
    is_sampled = fields.flag('do_sample')
    temperature = found.pop('temperature', 1.0)
    notes = [*_contradictions(found, is_sampled and temperature > 0), *_without_counterpart(fields)]
    n = found.pop('num_return_sequences', 1)
    try:
        settings = GenerationSettings(temperature=temperature, **found)  # checked even without `do_sample`
        temperature = temperature if is_sampled else 0.0
        settings = dataclasses.replace(settings, temperature=temperature, num_return_sequences=n)
    except ValueError as error:
        raise ValueError(f'{fields.where}{error}') from None
    if notes:
        warnings.warn(printable(f'{fields.where}{"; ".join(notes)}', 2000), stacklevel=4)
    return settings


def _whole(fields: Fields, name: str) -> int:
    return fields.number(name, 0)


def _real(fields: Fields, name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fields.error(name, value, 'a number')
    return value


def _ids(fields: Fields, name: str) -> Any:
    value = fields.get(name)
    if isinstance(value, list) and len(value) > MAX_IDS:
        raise fields.error(name, value, f'at most {MAX_IDS} ids')
    return value


def _sequences(fields: Fields, name: str) -> Any:
    """A list of sequences of ids, or of pairs that begin with one; their values are checked later."""
    value = fields.get(name)
    parts = value if isinstance(value, list) else []
    sequences = [part[0] if name == 'sequence_bias' and part else part for part in parts if _is_list(part)]
    if len(parts) > MAX_SEQUENCES or any(_is_list(ids) and len(ids) > MAX_SEQUENCE for ids in sequences):
        raise fields.error(name, value, f'at most {MAX_SEQUENCES} sequences of at most {MAX_SEQUENCE} ids')
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


# How the fields that are named like settings are read; GenerationSettings checks their values.
READ: dict[str, Callable[[Fields, str], Any]] = {
    **dict.fromkeys(WHOLE, _whole),
    **dict.fromkeys(REAL, _real),
    **dict.fromkeys(FLAGS, Fields.flag),
    **dict.fromkeys(IDS, _ids),
    **dict.fromkeys(('bad_words_ids', 'sequence_bias'), _sequences),
    **dict.fromkeys(('early_stopping', 'exponential_decay_length_penalty'), Fields.get),
}


def _max_new_tokens(fields: Fields) -> int | None:
    new: int | None = fields.number('max_new_tokens', 0) or None
    longest = fields.number('max_length', 0) or DEFAULT_NEW_TOKENS
    return longest if new is None and longest < DEFAULT_NEW_TOKENS else new


def _eos(fields: Fields) -> tuple[int, ...] | None:
    value = fields.get('eos_token_id', -1)
    eos = None if value in (-1, [-1], []) else fields.numbers('eos_token_id', 0)
    if eos and min(eos) < 0:
        raise fields.error('eos_token_id', value, f'ids from 0 to {LARGEST_NUMBER}')
    return eos


def _strings(fields: Fields) -> list[str]:
    value = fields.get('stop_strings', [])
    strings = [value] if isinstance(value, str) else value
    if (
        not _is_list(strings)
        or len(strings) > MAX_STRINGS
        or not all(isinstance(text, str) and 0 < len(text) <= MAX_STRING for text in strings)
    ):
        raise fields.error(
            'stop_strings', value, f'at most {MAX_STRINGS} strings of 1 to {MAX_STRING} characters'
        )
    return strings


def _contradictions(found: dict[str, Any], is_sampled: bool) -> Iterator[str]:
    """Replaces settings that contradict others, with a note on each; the model can be used without them."""
    n, beams = found.get('num_return_sequences', 1), found.get('num_beams', 1)
    most = beams if beams > 1 else n if is_sampled else 1
    if n > most:
        found['num_return_sequences'] = most
        reason = f'{beams} beams give at most {beams}' if beams > 1 else 'at temperature 0 all would be equal'
        yield f'num_return_sequences is {n}, but {reason}: {most} is used'
    smallest, largest = found.get('min_new_tokens', 0), found['max_new_tokens']
    if largest is not None and smallest > largest:
        found['min_new_tokens'] = largest
        yield f'min_new_tokens is {smallest}, but max_new_tokens {largest}: {largest} is used'


def _without_counterpart(fields: Fields) -> Iterator[str]:
    for name, neutral in WITHOUT_COUNTERPART.items():
        value = fields.get(name)
        if value is not None and value not in neutral:
            yield f'{name} is ignored, because {REFUSED[name]}'
