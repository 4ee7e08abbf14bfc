"""Signals that ask a run to end, which it does when its step is done and saved."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def heard() -> Iterator[Callable[[], int]]:
    """What tells the number of the SIGINT or SIGTERM that came, 0 before; a second one acts as if unheard."""
    got = 0

    def hear(number: int, _: object) -> None:
        nonlocal got
        if got:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        got = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
