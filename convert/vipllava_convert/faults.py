"""What is wrong with many tensors, in one message of a bounded length."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from vipllava_jax.folders import printable

SHOWN = 5  # names of each kind
NAMES = 280  # characters of all the names in a message
NAME = 120  # and of one of them


def described(faults: Mapping[str, Iterable[str]]) -> str:
    """Names by what is wrong with them -> the first few of each kind, and how many more there are.

    'missing: a, b and 7 more; unknown: c'. Kinds without names are left out; without any it is empty.
    """
    kinds = {what: sorted(names) for what, names in faults.items()}
    kinds = {what: names for what, names in kinds.items() if names}
    shown: dict[str, list[str]] = {what: [] for what in kinds}
    left = NAMES
    for i in range(SHOWN):
        for what, names in kinds.items():
            if i < len(names) and len(shown[what]) == i:
                text = printable(names[i], NAME)
                if i == 0 or len(text) + 2 <= left:
                    shown[what].append(text)
                    left -= len(text) + 2
    return '; '.join(f'{what}: {_counted(shown[what], names)}' for what, names in kinds.items())


def first(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    return described({'': names}).removeprefix(': ')


def _counted(shown: list[str], names: list[str]) -> str:
    more = len(names) - len(shown)
    return ', '.join(shown) + (f' and {more} more' if more else '')


def ranges(names: Iterable[str]) -> list[str]:
    """'layers.0.w', 'layers.1.w', 'layers.2.w' -> 'layers.{0-2}.w'."""
    numbers = defaultdict(set)
    for name in names:
        number = re.search(r'(?<=\.layers\.)(0|[1-9][0-9]{0,8})(?=\.)', name)
        stem = name if number is None else name[: number.start()] + '{}' + name[number.end() :]
        numbers[stem].add(-1 if number is None else int(number[0]))
    return [stem.replace('{}', _span(found)) if '{}' in stem else stem for stem, found in numbers.items()]


def _span(found: set[int]) -> str:
    """{0, 1, 2} -> '{0-2}', {0, 2} -> '{0,2}', {3} -> '3'."""
    low, high = min(found), max(found)
    if low == high:
        return str(low)
    if high - low + 1 == len(found):
        return f'{{{low}-{high}}}'
    return f'{{{",".join(map(str, sorted(found)[:8]))}{",…" if len(found) > 8 else ""}}}'
