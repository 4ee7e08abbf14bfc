"""Numbers as options: finite, and of a size that their place can hold."""

import math
from typing import Any

import click

LARGEST = 2**31 - 1


class Real(click.FloatRange):
    """A finite number in a range: click lets NaN pass every range."""

    name = 'number'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f'{value} is not a finite number', param, ctx)
        return number


class Whole(click.IntRange):
    """A whole number in a range, which ends where 32 bits do unless it says otherwise."""

    name = 'whole number'

    def __init__(self, least: int, most: int = LARGEST):
        super().__init__(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, str) and len(value) > 20:  # int() of thousands of digits is an error of its own
            self.fail(f'{value[:20]}… has too many digits: {self.min} to {self.max} is expected', param, ctx)
        return super().convert(value, param, ctx)
