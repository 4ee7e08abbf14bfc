"""Folders that change their places in one step, and are held by one process at a time."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

REPLACED = '-replaced'  # ends the name of a folder that was moved aside for its successor


def put(partial: Path, folder: Path, replaces: bool) -> None:
    """Moves a folder to its place, where another may be; if the system can, that place is never empty.

    What was there is then where the new one was, or beside it under a name that ends in REPLACED.
    """
    if not replaces or not any(folder.iterdir()):
        partial.rename(folder)
    elif not exchange(partial, folder):
        aside = folder.with_name(f'{partial.name}{REPLACED}')
        try:
            folder.rename(aside)
            partial.rename(folder)
        finally:
            if not folder.exists():
                aside.rename(folder)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False where the system or the file system cannot."""
    import ctypes  # takes longer to import than most commands need for all else of this

    renameat2 = getattr(ctypes.CDLL(None), 'renameat2', None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return renameat2 is not None and not renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds a folder for this process alone; the lock goes with the process, however that ends.

    Raises BlockingIOError if another holds it, with `wait` only after a second.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        for attempt in range(50 if wait else 1, 0, -1):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 1:
                    raise
                time.sleep(0.02)
        try:
            yield
        finally:
            fcntl.flock(fd, fcntl.LOCK_UN)  # also for a child process, which has the descriptor
    finally:
        os.close(fd)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
