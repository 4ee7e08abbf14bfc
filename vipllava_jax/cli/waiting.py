"""Progress bars and spinners on stderr, which disappear when the work is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vipllava_jax.messages import duration

QUIET = 30  # seconds between two lines if stderr is not a terminal


@contextmanager
def spinner(what: str) -> Iterator[Callable[[], None]]:
    """A spinner with a text, until the yielded function is called or the block ends; only on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    status = console.status(what)
    with status:
        yield status.stop


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `progress(done, total)`, which shows both, the rate and the time left from its first call on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = [TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[pace]}')]
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=None, pace='')
    first = shown = (0.0, 0)  # (time, number done) of the first call, and of the last line

    def progress(done: int, total: int) -> None:
        nonlocal first, shown
        now = time.perf_counter()
        begins = not first[0]
        if begins:
            first = shown = (now, done)
        pace = paced(done - first[1], total - done, now - first[0])
        bar.update(task, completed=done, total=total, pace=pace)
        if begins and console.is_terminal:
            bar.start()
        if not console.is_terminal and (now - shown[0] > QUIET or done == total > shown[1]):
            shown = (now, done)
            console.print(f'{what} {done}/{total}  {pace}', markup=False, highlight=False, soft_wrap=True)

    try:
        yield progress
    finally:
        if console.is_terminal:  # elsewhere it would leave an empty line
            bar.stop()


def paced(done: int, left: int, seconds: float) -> str:
    """'4.0/s, 1:15 left'; '' before anything is done."""
    return f'{done / seconds:.1f}/s, {duration(left * seconds / done)} left' if done else ''
