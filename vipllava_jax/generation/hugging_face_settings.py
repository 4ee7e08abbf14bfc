"""Reads the settings of generation in generation_config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vipllava_jax.generation.settings import DEFAULT_NEW_TOKENS, GenerationSettings
from vipllava_jax.json_fields import LARGEST_NUMBER, Fields


def settings_from_hugging_face(generation: Mapping[str, Any]) -> GenerationSettings:
    """The settings in the content of a generation_config.json; fields that have no counterpart are ignored.

    As in transformers, `do_sample` is false unless the file says otherwise, and then the temperature is 0.
    Fields that are missing get the defaults of GenerationSettings. `max_length`, which includes the prompt,
    only lowers the default of `max_new_tokens`. Raises ValueError, naming the field, if one is malformed.
    """
    fields = Fields(generation, 'generation_config.json: ')
    new: int | None = fields.number('max_new_tokens', 0) or None
    longest = fields.number('max_length', 0) or DEFAULT_NEW_TOKENS
    if new is None and longest < DEFAULT_NEW_TOKENS:
        new = longest
    eos = None if fields.get('eos_token_id', -1) in (-1, [-1], []) else fields.numbers('eos_token_id', 0)
    if eos and min(eos) < 0:
        raise fields.error('eos_token_id', fields.get('eos_token_id'), f'ids from 0 to {LARGEST_NUMBER}')
    sampled, top_k = fields.flag('do_sample'), fields.number('top_k', 0)
    temperature, top_p = _real(fields, 'temperature', 1.0), _real(fields, 'top_p', 1.0)
    try:
        settings = GenerationSettings(
            max_new_tokens=new,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos=eos,
        )
    except ValueError as error:
        raise ValueError(f'{fields.where}{error}') from None
    return settings if sampled else dataclasses.replace(settings, temperature=0.0)


def _real(fields: Fields, name: str, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fields.error(name, value, 'a number')
    return value
