"""Trains a model on rows of conversations; `train`, in `run`, is the entry point.

`run` reads the `settings`, lets `prepare` check the rows and find the weights, and starts the `loop`, which
calls the compiled `step`; `recorder` writes its metrics, `held_out` evaluates, `export` writes the result.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vipllava_jax.training.finite import NotFinite
    from vipllava_jax.training.loop import Stopped
    from vipllava_jax.training.run import Trained, train

MODULES = {'NotFinite': 'finite', 'Stopped': 'loop', 'Trained': 'run', 'train': 'run'}
__all__ = ['NotFinite', 'Stopped', 'Trained', 'train']


def __getattr__(name: str) -> object:
    if name not in MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{MODULES[name]}'), name)
