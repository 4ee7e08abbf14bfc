"""Checks the values of generation settings, and stores them as Python numbers and tuples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vipllava_jax.json_fields import LARGEST_NUMBER
from vipllava_jax.messages import brief

LARGEST_SEED = 2**32 - 1  # jax ignores the higher bits of a seed
MAX_DRAFT = 64  # the maximum number of tokens that prompt lookup guesses at once
MAX_ANSWERS = 1024  # the maximum number of beams, and of answers, for one prompt
# Real numbers between these stay finite, and different from 0, when float32 programs combine them.
SMALLEST_REAL, LARGEST_REAL = 1e-30, 1e30

Rule = tuple[type, Callable[[np.ndarray], np.ndarray], str]


def _whole_from(smallest: int, largest: int = LARGEST_NUMBER) -> Rule:
    return (
        int,
        lambda x: (x >= smallest) & (x <= largest) & (x == np.floor(x)),
        f'a whole number from {smallest} to {largest}',
    )


FINITE: Rule = (
    float,
    lambda x: abs(x) <= LARGEST_REAL,
    f'finite, from {-LARGEST_REAL} to {LARGEST_REAL}',
)
NOT_NEGATIVE: Rule = (
    float,
    lambda x: (x >= 0) & (x <= LARGEST_REAL),
    f'finite and not below 0, at most {LARGEST_REAL}',
)
POSITIVE: Rule = (
    float,
    lambda x: (x >= SMALLEST_REAL) & (x <= LARGEST_REAL),
    f'finite and above 0, from {SMALLEST_REAL} to {LARGEST_REAL}',
)
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
    'num_return_sequences': _whole_from(1, MAX_ANSWERS),
    'num_beams': _whole_from(1, MAX_ANSWERS),
    'logprobs': _whole_from(0),
    'prompt_lookup_num_tokens': _whole_from(0, MAX_DRAFT),
}


def later_seed(seed: int, n: int) -> int:
    """The n-th seed after `seed`; 0 follows the largest."""
    return (seed + n) % (LARGEST_SEED + 1)


def array_of(value: Any) -> np.ndarray:
    """A number, or a sequence of numbers of any depth -> an array; of dtype object for anything else."""
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        return np.empty(1, object)
    # NumPy counts a boolean among numbers as 0 or 1, and bytes as small numbers.
    booleans = isinstance(value, list | tuple) and any(isinstance(x, bool | np.bool_) for x in value)
    if booleans or isinstance(value, bytes | bytearray | memoryview) or array.dtype.kind not in 'iuf':
        return np.empty(array.shape, object)
    return array


def numbers(name: str, value: Any, rule: Rule) -> Any:
    """A number or a sequence of numbers -> a Python number or a tuple; ValueError names the field."""
    convert, is_valid, expected = rule
    array = array_of(value)
    if array.dtype.kind == 'O' or array.ndim > 1 or not array.size:
        raise ValueError(f'{name} is {brief(value)}, but must be {expected}, or one such number for each row')
    valid = is_valid(array)
    if not valid.all():
        raise ValueError(f'{name} is {array[~valid][0]}, but must be {expected}')
    return tuple(map(convert, array.tolist())) if array.ndim else convert(array.item())


def count(name: str, value: Any, rule: Rule) -> int:
    """One number for all rows -> an int; ValueError names the field."""
    _, is_valid, expected = rule
    array = array_of(value)
    if array.dtype.kind == 'O' or array.ndim or not is_valid(array):
        raise ValueError(f'{name} is {brief(value)}, but must be {expected}, for all rows')
    return int(array.item())


def entries(value: Any) -> list[Any] | None:
    """The entries of a sequence or an array; None for anything else, also for a text or a mapping."""
    if isinstance(value, str | bytes | bytearray) or not (isinstance(value, Sequence) or np.shape(value)):
        return None
    return [*value]


def ids(name: str, value: Any) -> tuple[int, ...]:
    """An id or a sequence of ids -> a tuple; ValueError names the field."""
    array = np.atleast_1d(array_of(value))
    is_empty = array.shape == (0,) and entries(value) is not None
    if not is_empty and (
        array.dtype.kind not in 'iu' or array.ndim != 1 or ((array < 0) | (array > LARGEST_NUMBER)).any()
    ):
        raise ValueError(f'{name} is {brief(value)}, but must be an id, or ids, from 0 to {LARGEST_NUMBER}')
    return tuple(array.tolist())


def id_sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """A sequence of sequences of ids -> tuples; ValueError names the field."""
    sequences = entries(value)
    if sequences is None:
        raise ValueError(f'{name} is {brief(value)}, but must be a list of lists of ids')
    return tuple(_id_sequence(name, sequence) for sequence in sequences)


def _id_sequence(name: str, value: Any) -> tuple[int, ...]:
    if not entries(value):
        raise ValueError(f'{name} holds {brief(value)}, but must hold lists of one id or more')
    return ids(name, value)


def biases(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """{(id, …): bias} or [[[id, …], bias], …] -> ((ids, bias), …); ValueError names the field.

    A sequence that occurs several times has its last bias, as in transformers.
    """
    pairs = _pairs(name, value, 'a mapping from tuples of ids to numbers, or a list of pairs [ids, number]')
    return tuple({_id_sequence(name, ids): _bias(name, bias) for ids, bias in pairs}.items())


def id_biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """{id: bias} or [[id, bias], …] -> ((id, bias), …); ValueError names the field.

    Ids may be strings of digits, as the keys of an object in JSON are.
    """
    pairs = _pairs(name, value, 'a mapping from ids to numbers, or a list of pairs [id, number]')
    return tuple({_id(name, id): _bias(name, bias) for id, bias in pairs}.items())


def _pairs(name: str, value: Any, expected: str) -> list[tuple[Any, Any]]:
    several = [*value.items()] if isinstance(value, Mapping) else entries(value)
    if several is None:
        raise ValueError(f'{name} is {brief(value)}, but must be {expected}')
    for pair in several:
        if entries(pair) is None or len(pair) != 2:
            raise ValueError(f'{name} holds {brief(pair)}, but must be {expected}')
    return several


def _id(name: str, value: Any) -> int:
    is_digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10
    (found,) = ids(name, [int(value) if is_digits else value])
    return found


def _bias(name: str, value: Any) -> float:
    array = array_of(value)
    if array.dtype.kind == 'O' or array.ndim or not (abs(array) <= LARGEST_REAL or array == -np.inf):
        raise ValueError(
            f'{name} holds {brief(value)}, but a bias must be a number of at most {LARGEST_REAL}, or -inf, '
            'which bans'
        )
    return float(array)


def decay(name: str, value: Any) -> tuple[Any, Any]:
    """(start, factor) -> the same, each one number or one for each row; ValueError names the field."""
    pair = entries(value)
    if pair is None or len(pair) != 2:
        raise ValueError(
            f'{name} is {brief(value)}, but must be a pair: the number of tokens after which the penalty '
            'begins, and its factor'
        )
    return numbers(f'{name}[0]', pair[0], _whole_from(0)), numbers(f'{name}[1]', pair[1], POSITIVE)


def flag(name: str, value: Any, expected: str = 'True or False') -> bool:
    """A boolean of Python, NumPy or JAX -> a bool; ValueError names the field."""
    is_array = getattr(value, 'dtype', None) == np.bool_ and np.shape(value) == ()
    if not (isinstance(value, bool) or is_array):
        raise ValueError(f'{name} is {brief(value)}, but must be {expected}')
    return bool(value)


def early_stopping(name: str, value: Any) -> bool | str:
    """A boolean or 'never' -> the same; ValueError names the field."""
    if isinstance(value, str) and value == 'never':
        return 'never'
    return flag(name, value, "True, False or 'never'")


def strings(name: str, value: Any) -> tuple[str, ...]:
    """A string or a sequence of strings -> a tuple; ValueError names the field."""
    several = [value] if isinstance(value, str) else entries(value)
    if several is None or not all(isinstance(text, str) and text for text in several):
        raise ValueError(f'{name} is {brief(value)}, but must be a list of strings that are not empty')
    try:
        ''.join(several).encode()
    except UnicodeEncodeError:
        raise ValueError(f'{name} is {brief(value)}, but must be valid Unicode') from None
    return tuple(map(str, several))


def functions(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """A function or a sequence of functions -> a tuple; ValueError names the field."""
    several = [value] if callable(value) else entries(value)
    if several is None or not all(map(callable, several)):
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
