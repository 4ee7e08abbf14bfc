"""How the command ends when a signal asks it to: at once, in one way, with unfinished files removed.

Python's way, an exception in the main thread, is not safe while extension modules are imported: some swallow
the exception, and some crash. A library must not change its user's handlers, so only the command calls this.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOW_CURSOR = b'\r\x1b[2K\x1b[?25h'  # erases the line of a progress bar, which hides the cursor
_unfinished: set[str] = set()


@contextlib.contextmanager
def unfinished(path: str) -> Iterator[None]:
    """Marks a file or folder as one to remove if a signal ends the command before the block has ended."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[str]:
    """A new folder for temporary files, removed at the end of the block, however that comes."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix=prefix) as folder, unfinished(folder):
        yield folder


def end_cleanly() -> None:
    """Lets SIGINT, SIGTERM and SIGHUP remove what is unfinished and then end the process.

    A signal that is ignored, as in a background job or under nohup, stays so.
    """
    _handle(_end)


def end_at_once() -> None:
    """Lets these signals end the process without any work, once there is none to do."""
    _handle(signal.SIG_DFL)


def _handle(handler: Any) -> None:
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    """Ends the process by the signal itself, so that a shell sees why; a second signal does so at once."""
    for each in ENDING:
        signal.signal(each, signal.SIG_DFL)
    for path in list(_unfinished):
        _remove(path)
    with contextlib.suppress(Exception):
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)
    os.kill(os.getpid(), number)


def _remove(path: str) -> None:
    """Removes a file or a folder, in which other threads may still be writing."""
    import shutil

    for _ in range(3):
        with contextlib.suppress(OSError):
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)


def end_by_interrupt() -> None:
    """Ends the process as Ctrl-C does; tearing down what jax has under way may crash instead."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


@contextlib.contextmanager
def raising_interrupts() -> Iterator[None]:
    """Within the block, Ctrl-C raises KeyboardInterrupt, for work that has something to say at its end."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
