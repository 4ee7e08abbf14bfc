"""Types of options that take several values, separated by commas."""

import re
from collections.abc import Sequence
from typing import Any

import click


class Names(click.ParamType):
    """Some of the given names, as a tuple."""

    name = 'names'

    def __init__(self, choices: Sequence[str]):
        self.choices = choices

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        names = tuple(part.strip() for part in value.split(',')) if isinstance(value, str) else value
        for name in names:
            if name not in self.choices:
                self.fail(f'{name!r} is not one of {", ".join(self.choices)}', param, ctx)
        return names


class Numbers(click.ParamType):
    """Positive whole numbers, as a sorted tuple without repetitions."""

    name = 'numbers'

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(',')]
        if not all(re.fullmatch('0*[1-9][0-9]{0,6}', part, re.ASCII) for part in parts):
            self.fail(f'{value[:80]!r} is not a list of numbers from 1 to 9999999 such as 1,8', param, ctx)
        return tuple(sorted({int(part) for part in parts}))
