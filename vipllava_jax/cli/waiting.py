"""What is seen while waiting: a bar on stderr, gone when the work is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yields `progress(done, total, name)`, which draws bytes, rate and time left, on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = [
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn('[dim]{task.fields[name]}'),
    ]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, name='')
        yield lambda done, total, name: bar.update(task, completed=done, total=total, name=name)


@contextmanager
def spinner(what: str) -> Iterator[Callable[[], None]]:
    """Turns beside `what` until the function it yields is called, or the end; silent without a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    status = console.status(what)
    with status:
        yield status.stop
