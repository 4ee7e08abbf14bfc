"""Trains a model on rows of conversations; `train` is the entry point."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vipllava_jax.training.loop import NotFinite, Stopped, Trained, train

__all__ = ['NotFinite', 'Stopped', 'Trained', 'train']


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.loop'), name)
