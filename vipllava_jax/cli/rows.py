"""Rows of data that are broken, as a user is told of them."""

import contextlib
from collections.abc import Iterator

import click


@contextlib.contextmanager
def a_line_each() -> Iterator[None]:
    """Tells on stderr all lines of a ValueError but the last, which is raised as one: each is of a row.

    What is wrong with one row is raised as one line.
    """
    try:
        yield
    except ValueError as error:
        *told, last = str(error).splitlines() or ['']
        if len(told) == 2:
            raise ValueError(f'{" ".join(told)}; {last}') from None
        for line in told:
            click.echo(line, err=True)
        raise ValueError(last) from None
