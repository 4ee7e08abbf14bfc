"""Answers many questions at once, which arrive and end at any time."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vipllava_jax.engine.answer_format import AnswerFormat
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.engine.pieces import Answer, Piece, TokenLogprobs
    from vipllava_jax.engine.question import Question, QuestionError, QueueFull
    from vipllava_jax.engine.reply import Reply
    from vipllava_jax.engine.stats import Stats

_HOMES = {
    'Answer': 'pieces',
    'AnswerFormat': 'answer_format',
    'Engine': 'engine',
    'Piece': 'pieces',
    'Question': 'question',
    'QuestionError': 'question',
    'QueueFull': 'question',
    'Reply': 'reply',
    'Stats': 'stats',
    'TokenLogprobs': 'pieces',
}

__all__ = [
    'Answer',
    'AnswerFormat',
    'Engine',
    'Piece',
    'Question',
    'QuestionError',
    'QueueFull',
    'Reply',
    'Stats',
    'TokenLogprobs',
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
