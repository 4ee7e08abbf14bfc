"""Asks the questions of a batch, and collects their lines as they are finished."""

import warnings
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from vipllava_jax.asking.many import Asked, ask_together
from vipllava_jax.batch_files.questions import RowQuestion

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine


def rounds(
    engine: 'Engine', questions: Iterator[RowQuestion | None], ordered: bool = False
) -> Generator[list[dict[str, Any]]]:
    """Asks the questions of rows as `ask_together`, and yields the lines of those that have ended."""
    rows = (None if row is None else Asked(row, row.questions, row.size, row.error) for row in questions)
    has_warned = False
    with closing(ask_together(engine, rows, ordered)) as found:
        for ended in found:
            has_warned = has_warned or _warn(ended)
            yield [_line(asked) for asked in ended]


def _line(asked: Asked[RowQuestion]) -> dict[str, Any]:
    lines = asked.key.lines
    return lines.error(asked.error) if asked.error else lines.answers(asked.replies)


def _warn(ended: list[Asked[RowQuestion]]) -> bool:
    """Warns of the first mark that is cut off, if there is one: the others would be as many lines."""
    for asked in ended:
        for warning in (warning for reply in asked.replies for warning in reply.warnings):
            warnings.warn(f'{asked.key.id}: {warning}', stacklevel=3)
            return True
    return False
