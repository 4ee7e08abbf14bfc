"""Decodes the run-length encoded masks of COCO, whose runs go down the columns and begin with a gap."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vipllava_jax.inputs.coordinates import as_sequence
from vipllava_jax.messages import brief

MAX_RUNS = 2_000_000  # the maximum per mask; a large photo's column has a few
MAX_DIGITS = 7  # the maximum per run in a string: 35 bits


def decode_mask(encoded: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A mask {"size": [h, w], "counts": …} of a picture of (width, height) pixels -> the mask hw of bools.

    `counts` are run lengths, as a list or in COCO's compressed string. Raises ValueError if they do not have
    the size of the picture, or nothing is marked.
    """
    width, height = size
    stated = as_sequence(encoded.get('size'))
    if stated is None or [*stated] != [height, width]:
        raise ValueError(
            f'a mask has the size {brief(encoded.get("size"))} (height, width), but the picture has '
            f'{brief([height, width])}: give the picture that was annotated'
        )
    counts = encoded.get('counts')
    if isinstance(counts, (str, bytes)):
        runs = parse_counts(counts if isinstance(counts, str) else counts.decode('latin-1'))
    else:
        runs = _check_list(counts, width * height)
    if any(run < 0 for run in runs) or sum(runs) != width * height:
        found = 'there is a negative one' if min(runs, default=0) < 0 else f'their sum is {sum(runs)}'
        raise ValueError(f'the run lengths of a mask must add up to {width * height} pixels: {found}')
    marked = np.arange(len(runs)) % 2 == 1
    mask = np.repeat(marked, runs).reshape(width, height).T
    if not mask.any():
        raise ValueError('a mask is empty: leave its region out')
    return mask


def _check_list(counts: Any, largest: int) -> list[int]:
    """The run lengths of a list."""
    runs = as_sequence(counts)
    if runs is None:
        raise ValueError(f'"counts" of a mask is {brief(counts)}: expected a list of numbers, or a string')
    if len(runs) > MAX_RUNS:
        raise ValueError(f'a mask has {len(runs)} runs, expected at most {MAX_RUNS}')
    for run in runs:
        if isinstance(run, bool) or not isinstance(run, (int, np.integer)) or not 0 <= run <= largest:
            raise ValueError(f'a run of a mask is {brief(run)}: expected a whole number up to {largest}')
    return [int(run) for run in runs]


def parse_counts(text: str) -> list[int]:
    """COCO's compressed string -> the run lengths; ValueError if it is damaged.

    A number has five bits per character, the lowest first, with an offset of 48; 32 says that another
    character follows, and 16 in the last one that the number is negative. From the fourth on, a number is the
    difference from the run before the previous one.
    """
    if len(text) > MAX_DIGITS * MAX_RUNS:
        raise ValueError(f'a mask has {len(text)} characters, expected at most {MAX_DIGITS * MAX_RUNS}')
    runs: list[int] = []
    number = digits = 0
    for at, character in enumerate(text):
        code = ord(character) - 48
        if not 0 <= code < 64 or digits == MAX_DIGITS:
            raise ValueError(f'the mask {brief(text, 40)} is damaged at character {at}: encode it again')
        number |= (code & 31) << 5 * digits
        digits += 1
        if code & 32:
            continue
        if code & 16:
            number -= 1 << 5 * digits
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = digits = 0
    if digits:
        raise ValueError(f'the mask {brief(text, 40)} ends within a number: encode it again')
    if len(runs) > MAX_RUNS:
        raise ValueError(f'a mask has {len(runs)} runs, expected at most {MAX_RUNS}')
    return runs
