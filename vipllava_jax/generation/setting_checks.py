"""Checks the values of generation settings, and stores them as Python numbers and tuples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vipllava_jax.json_fields import LARGEST_NUMBER
from vipllava_jax.messages import brief

LARGEST_SEED = 2**32 - 1  # jax ignores the higher bits of a seed
MOST_ANSWERS = 1024  # the largest number of beams, and of answers, for one prompt

Rule = tuple[type, Callable[[np.ndarray], np.ndarray], str]


def _whole_from(smallest: int, largest: int = LARGEST_NUMBER) -> Rule:
    return (
        int,
        lambda x: (x >= smallest) & (x <= largest) & (x == np.floor(x)),
        f'a whole number from {smallest} to {largest}',
    )


FINITE: Rule = (float, lambda x: np.isfinite(x), 'finite')
NOT_NEGATIVE: Rule = (float, lambda x: (x >= 0) & np.isfinite(x), 'finite and not below 0')
POSITIVE: Rule = (float, lambda x: (x > 0) & np.isfinite(x), 'finite and above 0')
SHARE: Rule = (float, lambda x: (x > 0) & (x <= 1), 'above 0 and at most 1')
CUTOFF: Rule = (float, lambda x: (x >= 0) & (x < 1), 'at least 0 and below 1')

# The settings that are one number, or one for each row.
NUMBERS: dict[str, Rule] = {
    'max_new_tokens': _whole_from(1),
    'min_new_tokens': _whole_from(0),
    'max_time': POSITIVE,
    'temperature': NOT_NEGATIVE,
    'top_k': _whole_from(0),
    'top_p': SHARE,
    'min_p': (float, lambda x: (x >= 0) & (x <= 1), 'at least 0 and at most 1'),
    'typical_p': SHARE,
    'epsilon_cutoff': CUTOFF,
    'eta_cutoff': CUTOFF,
    'top_h': SHARE,
    'repetition_penalty': POSITIVE,
    'presence_penalty': FINITE,
    'frequency_penalty': FINITE,
    'no_repeat_ngram_size': _whole_from(0),
    'length_penalty': FINITE,
    'seed': _whole_from(0, LARGEST_SEED),
}
# The settings that are one number for all rows, because the shapes of the programs depend on them.
COUNTS: dict[str, Rule] = {
    'num_return_sequences': _whole_from(1, MOST_ANSWERS),
    'num_beams': _whole_from(1, MOST_ANSWERS),
    'logprobs': _whole_from(0),
}


def numbers(name: str, value: Any, rule: Rule) -> Any:
    """A number or a sequence of numbers -> a Python number or a tuple; ValueError names the field."""
    convert, is_valid, expected = rule
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


def count(name: str, value: Any, rule: Rule) -> int:
    """One number for all rows -> an int; ValueError names the field."""
    _, is_valid, expected = rule
    array = np.asarray(value) if np.ndim(value) == 0 else np.empty(0, object)
    if array.dtype.kind not in 'iuf' or not is_valid(array).all():
        raise ValueError(f'{name} is {brief(value)}, but must be {expected}, for all rows')
    return int(array.item())


def ids(name: str, value: Any) -> tuple[int, ...]:
    """An id or a sequence of ids -> a tuple; ValueError names the field."""
    try:
        array = np.atleast_1d(np.asarray(value if np.ndim(value) == 0 else [*value]))
    except ValueError:  # lists of different lengths
        array = np.empty(0, object)
    are_integers = array.dtype.kind in 'iu' or (array.size == 0 and array.dtype.kind == 'f')
    if not are_integers or array.ndim != 1 or ((array < 0) | (array > LARGEST_NUMBER)).any():
        raise ValueError(f'{name} is {brief(value)}, but must be an id, or ids, from 0 to {LARGEST_NUMBER}')
    return tuple(array.tolist())


def id_sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """A sequence of sequences of ids -> tuples; ValueError names the field."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence | np.ndarray):
        raise ValueError(f'{name} is {brief(value)}, but must be a list of lists of ids')
    return tuple(_id_sequence(name, sequence) for sequence in value)


def _id_sequence(name: str, value: Any) -> tuple[int, ...]:
    if np.ndim(value) == 0 or not len(sequence := ids(name, value)):
        raise ValueError(f'{name} holds {brief(value)}, but must hold lists of one id or more')
    return sequence


def biases(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """{(id, …): bias} or [[[id, …], bias], …] -> ((ids, bias), …); ValueError names the field.

    A sequence that occurs several times has its last bias, as in transformers.
    """
    expected = 'a mapping from tuples of ids to numbers, or a list of pairs [ids, number]'
    if isinstance(value, str | bytes) or not isinstance(value, Mapping | Sequence):
        raise ValueError(f'{name} is {brief(value)}, but must be {expected}')
    pairs = value.items() if isinstance(value, Mapping) else value
    found: dict[tuple[int, ...], float] = {}
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise ValueError(f'{name} holds {brief(pair)}, but must be {expected}')
        found[_id_sequence(name, pair[0])] = _bias(name, pair[1])
    return tuple(found.items())


def id_biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """{id: bias} -> ((id, bias), …); ids may be strings of digits, as in JSON. ValueError names the field."""
    if isinstance(value, tuple):  # already checked
        value = dict(value)
    if not isinstance(value, Mapping):
        raise ValueError(f'{name} is {brief(value)}, but must be a mapping from ids to numbers')
    found = {}
    for id, bias in value.items():
        is_digits = isinstance(id, str) and id.isascii() and id.isdigit() and len(id) <= 10
        found[ids(name, int(id) if is_digits else id)[0]] = _bias(name, bias)
    return tuple(found.items())


def _bias(name: str, value: Any) -> float:
    array = np.asarray(value) if np.ndim(value) == 0 else np.empty(0, object)
    if array.dtype.kind not in 'iuf' or not array < np.inf:
        raise ValueError(f'{name} holds {brief(value)}, but a bias must be a number, or -inf for a ban')
    return float(array)


def decay(name: str, value: Any) -> tuple[Any, Any]:
    """(start, factor) -> the same, each one number or one for each row; ValueError names the field."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(
            f'{name} is {brief(value)}, but must be a pair: the number of tokens after which the penalty '
            'begins, and its factor'
        )
    start, factor = value
    return numbers(f'{name}[0]', start, _whole_from(0)), numbers(f'{name}[1]', factor, POSITIVE)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f'{name} is {brief(value)}, but must be True or False')
    return bool(value)


def early_stopping(name: str, value: Any) -> bool | str:
    if value == 'never':
        return 'never'
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {brief(value)}, but must be True, False or 'never'")
    return bool(value)


def strings(name: str, value: Any) -> tuple[str, ...]:
    several = (value,) if isinstance(value, str) else value
    if not isinstance(several, Sequence) or not all(isinstance(text, str) and text for text in several):
        raise ValueError(f'{name} is {brief(value)}, but must be a list of strings that are not empty')
    return tuple(several)


def functions(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """A function or a sequence of functions -> a tuple; ValueError names the field."""
    several = (value,) if callable(value) else value
    if not isinstance(several, Sequence) or not all(map(callable, several)):
        raise ValueError(
            f'{name} is {brief(value)}, but must be functions (ids BS, lengths B, logits BV) -> logits BV'
        )
    for function in several:
        try:
            hash(function)  # by which the compiled programs are found
        except TypeError:
            raise ValueError(
                f'{name} holds {brief(function)}, which has no hash: use a function, or a frozen dataclass '
                'with __call__'
            ) from None
    return tuple(several)
