"""Reporting broken rows of data."""

import contextlib
from collections.abc import Iterator

import click

from vipllava_jax.messages import printable


@contextlib.contextmanager
def a_line_each() -> Iterator[None]:
    """Prints the lines of a ValueError, one for each broken row, on stderr; raises one with the last line."""
    try:
        yield
    except ValueError as error:
        *told, last = str(error).splitlines() or ['']
        for line in told:
            click.echo(printable(line), err=True)
        raise ValueError(last) from None
