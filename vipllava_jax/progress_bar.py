"""A progress bar for reading and writing weights: on stderr, in a terminal or a notebook only."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

NARROW = 60  # columns; a narrower terminal shows numbers without a bar

Progress = Callable[[int, int, str], None]  # bytes done, total bytes, the name of the last tensor


@contextmanager
def progress_bar(description: str) -> Iterator[Progress]:
    """Yields `progress(done, total, name)`, which shows bytes, rate and time left; the bar then disappears.

    It shows nothing where nobody would see it: stderr must be a terminal, or the program a notebook.
    """
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(
        *_columns(console), console=console, transient=True, disable=not _interactive(console), expand=True
    ) as bar:
        task = bar.add_task(printable(description, 24), total=None, name='')
        yield lambda done, total, name: bar.update(
            task, completed=done, total=total, name=printable(name, 80)
        )


@contextmanager
def shown_progress(progress: Progress | bool | None, description: str) -> Iterator[Progress | None]:
    """Yields the function that `progress` stands for: a bar for None or True, none for False, or itself."""
    if callable(progress) or progress is False:
        yield progress or None
        return
    with progress_bar(description) as show:
        yield show


def _interactive(console: 'Console') -> bool:
    """Whether a bar can be drawn; in a notebook, rich needs ipywidgets."""
    return console.is_terminal or (console.is_jupyter and bool(importlib.util.find_spec('ipywidgets')))


def _columns(console: 'Console') -> 'list[ProgressColumn]':
    """The parts of the bar; the name takes the remaining width and is shortened first."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    def fixed(widest: int | None = None) -> Column:
        return Column(no_wrap=True, max_width=widest)

    numbers: list[ProgressColumn] = [
        DownloadColumn(table_column=fixed()),
        TransferSpeedColumn(table_column=fixed()),
        TimeRemainingColumn(table_column=fixed()),
    ]
    if console.width < NARROW:
        return [TextColumn('{task.description}', markup=False, table_column=fixed(9)), *numbers]
    name = Column(no_wrap=True, overflow='ellipsis', ratio=1)
    return [
        TextColumn('{task.description}', markup=False, table_column=fixed()),
        BarColumn(bar_width=12),
        *numbers,
        TextColumn('{task.fields[name]}', style='dim', markup=False, table_column=name),
    ]
