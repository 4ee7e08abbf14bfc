"""The settings of generation: checked when they are created, without importing jax."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from vipllava_jax.generation import setting_checks as check
from vipllava_jax.generation.refused_settings import explain
from vipllava_jax.messages import brief

DEFAULT_NEW_TOKENS = 512

Number = float | Sequence[float]
Count = int | Sequence[int]


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated; greedy by default. Names and meanings are those of transformers.

    Each number may also be a sequence with one number per row, except those on which the shapes of the
    programs depend: num_return_sequences, num_beams, logprobs and prompt_lookup_num_tokens. Sequences, arrays
    and mappings are stored as tuples. Raises ValueError, naming the field, if a value is out of range, and
    TypeError for a setting that does not exist.
    """

    max_new_tokens: Count | None = None  # None: 512, or what the context leaves if that is less
    min_new_tokens: Count | None = None  # before this many tokens, the ids of `eos` cannot be selected
    max_time: Number | None = None  # seconds after which an answer ends, checked after each chunk of tokens
    temperature: Number = 0.0  # 0: the most likely token is selected
    top_k: Count = 0  # sample from the k most likely tokens; 0: all
    top_p: Number = 1.0  # sample from the most likely tokens of this total probability
    min_p: Number | None = None  # sample from tokens at least this fraction as likely as the likeliest
    typical_p: Number = 1.0  # sample from the most typical tokens of this total probability
    epsilon_cutoff: Number = 0.0  # sample from tokens of at least this probability
    eta_cutoff: Number = 0.0  # the same with a limit that falls as the entropy rises
    top_h: Number | None = None  # sample from the most likely tokens of this share of the entropy
    repetition_penalty: Number = 1.0  # above 1, ids in the prompt and the answer become less likely
    presence_penalty: Number = 0.0  # subtracted from the logit of each id in the answer
    frequency_penalty: Number = 0.0  # the same, once for each time that the id occurs in the answer
    no_repeat_ngram_size: Count = 0  # no sequence of n ids occurs twice in prompt and answer; 0: off
    bad_words_ids: Sequence[Sequence[int]] | None = None  # sequences of ids that are never completed
    sequence_bias: Any = None  # {(id, …): bias} or [[[id, …], bias], …], added where a sequence is completed
    logit_bias: Any = None  # {id: bias}, added to the logits
    suppress_tokens: Sequence[int] | None = None  # ids that are never selected
    begin_suppress_tokens: Sequence[int] | None = None  # ids that are not selected as first token
    forced_eos_token_id: int | Sequence[int] | None = None  # the only ids for the token at max_new_tokens
    # After `start` tokens, the ids of `eos` become more likely with each token.
    exponential_decay_length_penalty: tuple[Any, Any] | None = None  # (start, factor)
    remove_invalid_values: bool = False  # whether NaN and infinity among the logits become finite
    renormalize_logits: bool = False  # whether `scores` are log-probabilities after all processors
    num_return_sequences: int = 1  # the number of answers to each prompt
    num_beams: int = 1  # the number of beams of beam search; 1: none
    length_penalty: Number = 1.0  # beams are ranked by their log-probability / length ** length_penalty
    # Beam search ends with num_beams answers (True), or when better ones are unlikely (False) or impossible
    # ('never').
    early_stopping: bool | str = False
    eos: int | Sequence[int] | None = None  # the ids that end an answer; None: those of the config
    stop: str | Sequence[str] = ()  # strings that end an answer
    keep_stop: bool = False  # whether the text keeps the stop string that ended it
    logprobs: int | None = None  # report the k most likely tokens with each token; 0: only the token itself
    seed: Count | None = None  # row r uses fold_in(key(seed), r) or key(seed[r]); None: random
    prompt_lookup_num_tokens: int = 0  # greedy decoding checks this many guesses per step; 0: none
    processors: Sequence[Callable[..., Any]] = ()  # (ids BS, lengths B, logits BV) -> logits BV, under jit

    def __new__(cls, *args: Any, **fields: Any) -> Self:
        for name in fields:
            if name not in cls.__dataclass_fields__:
                raise TypeError(explain(name, [*cls.__dataclass_fields__]))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, rule in check.NUMBERS.items():
            self._set(name, check.numbers, rule)
        for name, rule in check.COUNTS.items():
            self._set(name, check.count, rule)
        for name, checked in CHECKS.items():
            self._set(name, checked)
        self._check_number_of_answers()
        if self.min_new_tokens is not None and self.max_new_tokens is not None:
            check_lengths(np.asarray(self.min_new_tokens), np.asarray(self.max_new_tokens))

    def _set(self, name: str, checked: Callable[..., Any], *rule: Any) -> None:
        """Replaces a field by its checked value; None stays where it is the default."""
        value = getattr(self, name)
        if value is not None or type(self).__dataclass_fields__[name].default is not None:
            object.__setattr__(self, name, checked(name, value, *rule))

    def _check_number_of_answers(self) -> None:
        n = self.num_return_sequences
        if self.num_beams > 1 and n > self.num_beams:
            raise ValueError(
                f'num_return_sequences is {n}, but {self.num_beams} beams give at most {self.num_beams} '
                'answers to a prompt: raise num_beams'
            )
        if self.num_beams == 1 and n > 1 and not np.all(self.temperature):
            raise ValueError(
                f'num_return_sequences is {n}, but at temperature 0 the {n} answers to a prompt would be '
                'equal: set a temperature above 0 for all rows, or num_beams'
            )

    def __repr__(self) -> str:
        """Only what differs from the defaults."""
        fields = [
            (field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)
        ]
        given = (f'{name}={value!r}' for name, value, default in fields if value != default)
        return f'GenerationSettings({", ".join(given)})'

    def per_row(self, name: str, B: int, none: float | None = None) -> np.ndarray:
        """The numbers of a field as an array B, `none` for None; the errors are those of `rows_of`."""
        value = getattr(self, name)
        return rows_of(name, none if value is None else value, B)


def rows_of(name: str, value: Any, B: int) -> np.ndarray:
    """A number, or one per row -> an array B; ValueError, naming the field, for another number of rows."""
    if np.shape(value) not in ((), (B,)):
        raise ValueError(f'{name} has the shape {np.shape(value)}: give one number, or {B}, one for each row')
    return np.broadcast_to(np.asarray(value), B)


def check_lengths(smallest: np.ndarray, largest: np.ndarray) -> None:
    """Raises ValueError if an answer must be longer than it may; both are one number, or one per row."""
    if smallest.shape != largest.shape and smallest.ndim and largest.ndim:
        return  # `rows_of` names the one that does not fit the batch
    smallest, largest = np.broadcast_arrays(smallest, largest)
    for row in np.argwhere(smallest > largest)[:1]:
        where = ''.join(f'row {r}: ' for r in row)
        raise ValueError(
            f'{where}min_new_tokens is {smallest[*row]}, but max_new_tokens is {largest[*row]}: raise '
            'max_new_tokens'
        )


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    'bad_words_ids': check.id_sequences,
    'sequence_bias': check.biases,
    'logit_bias': check.id_biases,
    'suppress_tokens': check.ids,
    'begin_suppress_tokens': check.ids,
    'forced_eos_token_id': check.ids,
    'exponential_decay_length_penalty': check.decay,
    'remove_invalid_values': check.flag,
    'renormalize_logits': check.flag,
    'early_stopping': check.early_stopping,
    'eos': check.ids,
    'stop': check.strings,
    'keep_stop': check.flag,
    'processors': check.functions,
}


def with_overrides(settings: GenerationSettings | None, overrides: Mapping[str, Any]) -> GenerationSettings:
    """The settings (None: the defaults) with some fields replaced; TypeError if a field does not exist."""
    settings = GenerationSettings() if settings is None else settings
    if not isinstance(settings, GenerationSettings):
        raise TypeError(f'settings is {brief(settings)}, but must be a GenerationSettings')
    return dataclasses.replace(settings, **overrides)
