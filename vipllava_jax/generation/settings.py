"""The settings of generation: checked when they are created, without importing jax."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vipllava_jax.json_fields import LARGEST_NUMBER, Fields
from vipllava_jax.messages import brief

DEFAULT_NEW_TOKENS = 512
LARGEST_SEED = 2**32 - 1  # jax ignores the higher bits of a seed


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated; greedy by default.

    Each number may also be a sequence with one number per row. Sequences and arrays are stored as tuples.
    Raises ValueError, naming the field, if a value is out of range.
    """

    max_new_tokens: int | Sequence[int] | None = None  # None: 512, or what the context leaves if that is less
    temperature: float | Sequence[float] = 0.0  # 0: the most likely token is selected
    top_k: int | Sequence[int] = 0  # sample from the k most likely tokens; 0: all
    top_p: float | Sequence[float] = 1.0  # sample from the most likely tokens of this total probability
    eos: int | Sequence[int] | None = None  # the ids that end an answer; None: those of the config
    stop: str | Sequence[str] = ()  # strings that end an answer
    keep_stop: bool = False  # whether the text keeps the stop string that ended it
    seed: int | Sequence[int] | None = None  # row r uses fold_in(key(seed), r) or key(seed[r]); None: random

    def __post_init__(self) -> None:
        for name, (convert, is_valid, expected) in NUMBERS.items():
            value = getattr(self, name)
            if value is not None or name not in ('max_new_tokens', 'seed'):
                object.__setattr__(self, name, _numbers(name, value, convert, is_valid, expected))
        if self.eos is not None:
            object.__setattr__(self, 'eos', _ids(self.eos))
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
            raise ValueError(f'stop is {brief(self.stop)}, but must be a list of strings that are not empty')
        object.__setattr__(self, 'stop', tuple(stop))
        if not isinstance(self.keep_stop, bool):
            raise ValueError(f'keep_stop is {brief(self.keep_stop)}, but must be True or False')

    def per_row(self, name: str, B: int) -> np.ndarray:
        """The numbers of a field as an array B; raises ValueError if the field has another number of rows."""
        value = getattr(self, name)
        if np.shape(value) not in ((), (B,)):
            raise ValueError(
                f'{name} has the shape {np.shape(value)}: give one number, or {B}, one for each row'
            )
        return np.broadcast_to(np.asarray(value), B)


Rule = tuple[type, Callable[[np.ndarray], np.ndarray], str]


def _whole_from(smallest: int, largest: int) -> Rule:
    return (
        int,
        lambda x: (x >= smallest) & (x <= largest) & (x == np.floor(x)),
        f'a whole number from {smallest} to {largest}',
    )


NUMBERS: dict[str, Rule] = {
    'max_new_tokens': _whole_from(1, LARGEST_NUMBER),
    'temperature': (float, lambda x: (x >= 0) & np.isfinite(x), 'finite and not below 0'),
    'top_k': _whole_from(0, LARGEST_NUMBER),
    'top_p': (float, lambda x: (x > 0) & (x <= 1), 'above 0 and at most 1'),
    'seed': _whole_from(0, LARGEST_SEED),
}


def _numbers(name: str, value: Any, convert: type, is_valid: Any, expected: str) -> Any:
    """A number or a sequence of numbers -> a Python number or a tuple; ValueError names the field."""
    error = f'{name} is {{}}, but must be {expected}'
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in 'iuf' or array.ndim > 1:
        raise ValueError(error.format(brief(value)) + ', or one such number for each row')
    valid = is_valid(array)
    if not valid.all():
        raise ValueError(error.format(array[~valid][0]))
    return tuple(map(convert, array.tolist())) if array.ndim else convert(array.item())


def _ids(value: Any) -> tuple[int, ...]:
    ids = np.atleast_1d(np.asarray(value if np.ndim(value) == 0 else [*value]))
    are_integers = ids.dtype.kind in 'iu' or ids.size == 0
    if not are_integers or ids.ndim != 1 or ((ids < 0) | (ids > LARGEST_NUMBER)).any():
        raise ValueError(f'eos is {brief(value)}, but must be an id, or ids, from 0 to {LARGEST_NUMBER}')
    return tuple(ids.tolist())


def with_overrides(settings: GenerationSettings | None, overrides: Mapping[str, Any]) -> GenerationSettings:
    """The settings (None: the defaults) with some fields replaced; TypeError if a field does not exist."""
    settings = GenerationSettings() if settings is None else settings
    if not isinstance(settings, GenerationSettings):
        raise TypeError(f'settings is {brief(settings)}, but must be a GenerationSettings')
    known = [field.name for field in dataclasses.fields(GenerationSettings)]
    if unknown := [name for name in overrides if name not in known]:
        raise TypeError(f'{unknown[0]} is not a setting of generation: they are {", ".join(known)}')
    return dataclasses.replace(settings, **overrides)


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
