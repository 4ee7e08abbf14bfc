"""Measures a model's accuracy on questions with known answers; `evaluate` is the entry point."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vipllava_jax.evaluation.run import Result, evaluate

__all__ = ['Result', 'evaluate']


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.run'), name)
