"""Lists faults of many tensors in one message of bounded length."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from vipllava_jax.messages import printable

SHOWN = 5  # names per fault
LENGTH = 400  # characters of a description
NAME = 120  # characters of a name


def describe_faults(faults: Mapping[str, Iterable[str]]) -> str:
    """Names grouped by fault -> 'missing: a, b and 7 more; unknown: c'.

    Faults without names are left out; without any names the result is ''.
    """
    named = {fault: sorted(names) for fault, names in faults.items()}
    named = {fault: names for fault, names in named.items() if names}
    shown: dict[str, list[str]] = {fault: [] for fault in named}
    left = LENGTH - sum(len(fault) + 20 for fault in named)
    longest = max(56, min(NAME, left // max(1, len(named))))
    for i in range(SHOWN):
        for fault, names in named.items():
            if i < len(names) and len(shown[fault]) == i:
                text = printable(names[i], longest)
                if i == 0 or len(text) + 2 <= left:
                    shown[fault].append(text)
                    left -= len(text) + 2
    return '; '.join(f'{fault}: {_counted(shown[fault], names)}' for fault, names in named.items())


def some_names(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    return describe_faults({'': names}).removeprefix(': ')


def _counted(shown: list[str], names: list[str]) -> str:
    more = len(names) - len(shown)
    return ', '.join(shown) + (f' and {more} more' if more else '')


def join_layer_numbers(names: Iterable[str]) -> list[str]:
    """'layers.0.w', 'layers.1.w', 'layers.2.w' -> 'layers.{0-2}.w'."""
    numbers = defaultdict(set)
    for name in names:
        number = re.search(r'(?<=\.layers\.)(0|[1-9][0-9]{0,8})(?=\.)', name)
        around = (name[: number.start()], name[number.end() :]) if number else (name, '')
        numbers[around].add(int(number[0]) if number else -1)
    return [before + (_span(found) if after else '') + after for (before, after), found in numbers.items()]


def _span(found: set[int]) -> str:
    """{0, 1, 2} -> '{0-2}', {0, 2} -> '{0,2}', {3} -> '3'."""
    low, high = min(found), max(found)
    if low == high:
        return str(low)
    if high - low + 1 == len(found):
        return f'{{{low}-{high}}}'
    return f'{{{",".join(map(str, sorted(found)[:8]))}{",…" if len(found) > 8 else ""}}}'
