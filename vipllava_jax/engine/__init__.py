"""Answers many questions at once, which arrive and end at any time."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vipllava_jax.engine.question import Question, QuestionError, QueueFull
    from vipllava_jax.engine.reply import Answer, Piece, Reply, TokenLogprobs

_HOMES = {
    'Answer': 'reply',
    'Piece': 'reply',
    'Question': 'question',
    'QuestionError': 'question',
    'QueueFull': 'question',
    'Reply': 'reply',
    'TokenLogprobs': 'reply',
}

__all__ = ['Answer', 'Piece', 'Question', 'QuestionError', 'QueueFull', 'Reply', 'TokenLogprobs']


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
