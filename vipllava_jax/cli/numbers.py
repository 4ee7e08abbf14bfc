"""Types of numeric options: finite and bounded."""

import math
from typing import Any

import click

LARGEST = 2**31 - 1


class RealNumber(click.FloatRange):
    """A finite number in a range; click's own type accepts NaN."""

    name = 'number'

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f'{value} is not a finite number', param, ctx)
        return number


class WholeNumber(click.IntRange):
    """A whole number in a range, by default up to the largest 32-bit integer."""

    name = 'whole number'

    def __init__(self, minimum: int, maximum: int = LARGEST):
        super().__init__(minimum, maximum)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        # int() raises a different error for thousands of digits
        if isinstance(value, str) and len(value) > 20:
            self.fail(f'{value[:20]}… has too many digits: expected {self.min} to {self.max}', param, ctx)
        return super().convert(value, param, ctx)
