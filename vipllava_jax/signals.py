"""Signal handlers: how the command ends on Ctrl-C or SIGTERM, and how a training run saves first.

By default the command removes its unfinished files and ends at once. Python's default, an exception in the
main thread, is not safe while extension modules are being imported: some swallow the exception, and some
crash. A library must not change its user's handlers, so only the command calls `end_cleanly`.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOW_CURSOR = b'\r\x1b[2K\x1b[?25h'  # erases the line of a progress bar and shows the cursor that it hid
_unfinished: set[str] = set()


@contextlib.contextmanager
def unfinished(path: str) -> Iterator[None]:
    """Removes a file or folder if a signal ends the command within the block."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """A new folder for temporary files, removed after the block, also if a signal ends the command."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix=prefix) as folder, unfinished(folder):
        yield folder


def end_cleanly() -> None:
    """Makes SIGINT, SIGTERM and SIGHUP remove unfinished files and then end the process.

    A signal that is ignored, as in a background job or under nohup, stays ignored.
    """
    _handle(_end)


def end_at_once() -> None:
    """Makes SIGINT, SIGTERM and SIGHUP end the process without cleanup, when no unfinished files remain."""
    _handle(signal.SIG_DFL)


def _handle(handler: Any) -> None:
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    """Ends the process with the same signal, so that a shell sees why; a second signal skips the cleanup."""
    for each in ENDING:
        signal.signal(each, signal.SIG_DFL)
    for path in list(_unfinished):
        _remove(path)
    with contextlib.suppress(Exception):
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)
    os.kill(os.getpid(), number)


def _remove(path: str) -> None:
    """Removes a file, or a folder to which other threads may still be writing."""
    import shutil

    for _ in range(3):
        with contextlib.suppress(OSError):
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)


def end_by_interrupt() -> None:
    """Ends the process by SIGINT, as Ctrl-C does by default; a normal exit may crash while jax is running."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def raising_interrupts() -> Iterator[None]:
    """Within the block, Ctrl-C raises KeyboardInterrupt, so that a command can report its partial results."""
    with _handling(signal.default_int_handler, signal.SIGINT):
        yield


@contextlib.contextmanager
def recording_interrupts() -> Iterator[Callable[[], bool]]:
    """Within the block, Ctrl-C only makes the yielded function return True."""
    pressed = False

    def record(number: int, _: object) -> None:
        nonlocal pressed
        pressed = True

    with _handling(record, signal.SIGINT):
        yield lambda: pressed


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[[], int]]:
    """Within the block, SIGINT and SIGTERM are recorded, so that the program can end when it is ready.

    Yields a function that returns the number of the signal that arrived, or 0. A second signal ends the
    process at once. A signal that is ignored, as SIGINT is in a background job, stays ignored. Outside the
    main thread, where Python handles no signals, none is caught.
    """
    import threading

    caught = 0

    def catch(number: int, _: object) -> None:
        nonlocal caught
        if caught:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        caught = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    with _handling(catch, signal.SIGINT, signal.SIGTERM):
        yield lambda: caught


@contextlib.contextmanager
def _handling(handler: Any, *numbers: int) -> Iterator[None]:
    """Within the block, the signals that are not ignored have this handler; afterwards, the previous one."""
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
