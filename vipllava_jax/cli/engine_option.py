"""The option that says whether the engine answers many questions, or batches do."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vipllava_jax.asking.starting import MIN_QUESTIONS
from vipllava_jax.cli.memory import reserve

F = TypeVar('F', bound=Callable[..., Any])


def engine_option(things: str) -> Callable[[F], F]:
    """The option --engine, for a command that asks about `things`."""
    return click.option(
        '--engine/--no-engine',
        'engine',
        default=None,
        help='Whether the engine answers, which takes the next question as soon as one is answered but has '
        f'to compile its programs first, or batches do.  [default: the engine for {MIN_QUESTIONS:,} {things} '
        'or more, unless on a CPU]',
    )


def reserve_for_engine(choice: bool | None, count: int) -> None:
    """Lets jax, before it starts, use most of a GPU's memory if an engine may answer so many questions."""
    if choice or (choice is None and count >= MIN_QUESTIONS):
        reserve()
