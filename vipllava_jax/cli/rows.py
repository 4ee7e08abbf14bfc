"""Reports broken rows of data."""

import contextlib
from collections.abc import Iterator

import click

from vipllava_jax.messages import printable
from vipllava_jax.pods import PodError


@contextlib.contextmanager
def report_broken_rows() -> Iterator[None]:
    """Prints the lines of a ValueError, one for each broken row, on stderr; raises one with the last line.

    If a single row is broken, the message is one line. A PodError, which is one line, does not change.
    """
    try:
        yield
    except PodError:
        raise
    except ValueError as error:
        *lines, last = str(error).splitlines() or ['']
        if len(lines) == 2:  # a heading and one row
            raise ValueError(f'{" ".join(lines)}; {last}') from None
        for line in lines:
            click.echo(printable(line), err=True)
        raise ValueError(last) from None
