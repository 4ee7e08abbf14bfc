"""The options of an engine that commands have in common."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from vipllava_jax.cli.numbers import WholeNumber

F = TypeVar('F', bound=Callable[..., Any])
ENGINE_OPTIONS = ('rows', 'slots', 'exact')


def engine_options(command: F) -> F:
    """The options --rows, --slots and --exact."""
    rows = click.option(
        '--rows',
        metavar='N',
        type=WholeNumber(1, 2**16),
        help='The number of answers that are generated together.  [default: what the memory has room for]',
    )
    slots = click.option(
        '--slots',
        metavar='N',
        type=WholeNumber(16),
        default=1024,
        show_default=True,
        help='The tokens of a prompt and its answer for which most rows have room; a few have more.',
    )
    exact = click.option(
        '--exact',
        is_flag=True,
        help='Make each answer independent of what else is answered, to the last bit; slower.',
    )
    return rows(slots(exact(command)))
