"""Typed access to the fields of JSON objects from files that may hold anything."""

from collections.abc import Mapping
from typing import Any

from vipllava_jax.messages import brief

LARGEST_NUMBER, MAX_NUMBERS = 2**31 - 1, 64


class Fields:
    """Typed access to a JSON object's fields; a ValueError names an invalid one. null counts as missing."""

    def __init__(self, data: Mapping[str, Any], where: str = ''):
        self.data, self.where = data, where

    def get(self, name: str, default: Any = None) -> Any:
        value = self.data.get(name)
        return default if value is None else value

    def part(self, name: str, default: Mapping[str, Any] | None = None) -> 'Fields':
        value = self.get(name, default)
        if not isinstance(value, Mapping):
            raise self.error(name, value, 'an object')
        return Fields(value, f'{self.where}{name}.')

    def number(self, name: str, default: int, *, minimum: int = 0, maximum: int = LARGEST_NUMBER) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.error(name, value, f'a whole number from {minimum} to {maximum}')
        return value

    def real(self, name: str, default: float, *, maximum: float = 1e30) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= maximum:
            raise self.error(name, value, 'a positive number')
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, 'true or false')
        return value

    def numbers(self, name: str, default: int | tuple[int, ...]) -> tuple[int, ...]:
        value = self.get(name, default)
        listed = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not 0 < len(listed) <= MAX_NUMBERS or not all(
            isinstance(i, int) and not isinstance(i, bool) and abs(i) <= LARGEST_NUMBER for i in listed
        ):
            raise self.error(name, value, f'a whole number or a list of at most {MAX_NUMBERS} of them')
        return listed

    def require(self, name: str, *allowed: Any) -> None:
        value = self.get(name, allowed[0])
        if isinstance(value, (list, dict)) or value not in allowed:
            names = ' or '.join(map(repr, allowed))
            raise ValueError(f'{self.where}{name}: {brief(value)} is not supported, only {names}')

    def error(self, name: str, value: Any, expected: str) -> ValueError:
        return ValueError(f'{self.where}{name}: expected {expected}, found {brief(value)}')
