"""Parses the JSON of one row, which may hold anything, within limits of size, depth and memory."""

import json
import math
from typing import Any

from vipllava_jax.data.row_values import check_values, is_safe_json
from vipllava_jax.messages import brief

MAX_VALUES = 1_000_000  # commas and brackets in a row: a value of two bytes can take a hundred in memory


def parse_fields(text: bytes) -> dict[str, Any]:
    """The JSON object of a row; ValueError if it is not one, or holds a value that JSON cannot write."""
    if sum(text.count(mark) for mark in (b',', b'[', b'{')) > MAX_VALUES:
        raise ValueError(f'more than {MAX_VALUES:,} values in one row')
    try:
        fields = json.loads(text.decode(), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError('nested too deeply') from None
    except ValueError as error:
        raise ValueError(f'not JSON ({error})') from None
    if not isinstance(fields, dict):
        raise ValueError(f'expected a JSON object, found {brief(fields)}')
    if not is_safe_json(text):
        check_values(fields)
    return fields


def _refuse(name: str) -> float:
    raise ValueError(f'{name} is not a number in JSON')


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f'{brief(text)} is too large for a number')
    return value
