"""A key of a run's settings: its help text, and which values it accepts."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from vipllava_jax.messages import brief

LARGEST = 3e38  # about the largest float32: larger numbers would become infinite
MAX_ENTRIES = 1000  # the maximum length of a list
TYPES = {str: 'a string', int: 'a whole number', float: 'a number', bool: 'true or false'}


class Key(NamedTuple):
    """The accepted values of a setting, its help text, and its group in the help of the command."""

    group: str
    type: type
    help: str
    is_list: bool = False
    choices: Sequence[str] = ()
    minimum: float | None = None
    above: float | None = None  # an exclusive lower bound
    maximum: float | None = None
    affects_results: bool = True  # a resumed run must have the same value

    def check(self, name: str, value: Any) -> Any:
        """The value in the key's type, as a tuple if it is a list; ValueError, with `name`, if invalid."""
        if not self.is_list:
            return self._check_one(name, value)
        values = [value] if isinstance(value, (str, os.PathLike)) else value
        if not isinstance(values, (list, tuple)):
            raise ValueError(f'{name} is {brief(value)}, expected a list')
        if not 0 < len(values) <= MAX_ENTRIES:
            raise ValueError(f'{name} is a list of {len(values)} entries, expected 1 to {MAX_ENTRIES}')
        return tuple(self._check_one(name, entry) for entry in values)

    def _check_one(self, name: str, value: Any) -> Any:
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if self.type is float and type(value) is int and abs(value) <= LARGEST:
            value = float(value)
        # an int that is too large for a float is reported as out of range
        found = float if self.type is float and type(value) is int else type(value)
        if found is not self.type:
            raise ValueError(f'{name} is {brief(value)}, expected {TYPES[self.type]}')
        if self.choices and value not in self.choices:
            raise ValueError(f'{name} is {brief(value)}, expected one of {", ".join(self.choices)}')
        if self.type is str and (not value or '\0' in value):
            raise ValueError(f'{name} is {brief(value)}, expected a string that is not empty and has no NUL')
        if self.type in (int, float) and not self._in_range(value):
            raise ValueError(f'{name} is {brief(value)}, expected {self._range()}')
        return value

    def _in_range(self, value: float) -> bool:
        """Whether a number is in the range of the key; NaN never is."""
        minimum = -LARGEST if self.minimum is None else self.minimum
        maximum = LARGEST if self.maximum is None else self.maximum
        return minimum <= value <= maximum and (self.above is None or value > self.above)

    def _range(self) -> str:
        """The range of a number, for messages."""
        form = ',d' if self.type is int else 'g'
        if self.above is not None:
            return f'more than {self.above:g}, and finite'
        assert self.minimum is not None
        if self.maximum is None:
            return f'{self.minimum:g} or more, and finite'
        return f'{self.minimum:{form}} to {self.maximum:{form}}'
