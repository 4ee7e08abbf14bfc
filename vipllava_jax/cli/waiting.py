"""Progress bars and spinners on stderr, which disappear when the work is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vipllava_jax.messages import duration

SECONDS = 30  # seconds between two lines if stderr is not a terminal


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
def count_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `progress(done, total)`, which shows both, the rate and the time left from its first call on."""
    first = (0.0, 0)  # time and number done of the first call

    with pace_bar(what) as show:

        def progress(done: int, total: int) -> None:
            nonlocal first
            now = time.perf_counter()
            first = first if first[0] else (now, done)
            show(done, total, rate_and_time(done - first[1], total - done, now - first[0]))

        yield progress


@contextmanager
def pace_bar(what: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """Yields `show(done, total, pace)`, which shows them from its first call on; an unknown total is None."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = [TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[pace]}')]
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what, total=None, pace='')
    last = (0.0, 0)  # time and number done of the last line, at first of the first call

    def show(done: int, total: int | None, pace: str) -> None:
        nonlocal last
        now = time.perf_counter()
        is_first = not last[0]
        if is_first:
            last = (now, done)
        bar.update(task, completed=done, total=total, pace=pace)
        if is_first and console.is_terminal:
            bar.start()
        is_end = total is not None and done == total > last[1]
        if not console.is_terminal and (now - last[0] > SECONDS or is_end):
            last = (now, done)
            count = f'{done}' if total is None else f'{done}/{total}'
            console.print(f'{what} {count}  {pace}', markup=False, highlight=False, soft_wrap=True)

    try:
        yield show
    finally:
        if console.is_terminal:  # elsewhere it would leave an empty line
            bar.stop()


def rate_and_time(done: int, left: int, seconds: float) -> str:
    """'4.0/s, 1:15 left'; '' before anything is done."""
    return f'{done / seconds:.1f}/s, {duration(left * seconds / done)} left' if done else ''
