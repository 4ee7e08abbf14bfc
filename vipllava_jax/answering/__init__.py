"""Questions in, replies out: prompts with marks, and answers as text; `answer` is the entry point."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vipllava_jax.answering.questions import answer

__all__ = ['answer']


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.questions'), name)
