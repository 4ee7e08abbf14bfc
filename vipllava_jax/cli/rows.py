"""Rows of data that are broken, as a user is told of them."""

import contextlib
from collections.abc import Iterator

import click

from vipllava_jax.messages import printable


@contextlib.contextmanager
def a_line_each() -> Iterator[None]:
    """Tells on stderr all lines of a ValueError but the last, which is raised as one: each is of a row."""
    try:
        yield
    except ValueError as error:
        *told, last = str(error).splitlines() or ['']
        for line in told:
            click.echo(printable(line), err=True)
        raise ValueError(last) from None
