"""Atomic replacement of folders, locks on them, and syncing to disk."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

REPLACED = '-replaced'  # suffix of a folder that was moved aside to be replaced


def move_into_place(partial: Path, folder: Path, replaces: bool) -> None:
    """Renames the finished folder `partial` to `folder`, atomically if the system supports that.

    A folder that was replaced remains, with the name of `partial` or that name plus REPLACED.
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
    """Exchanges two folders atomically; returns False if the system or file system does not support it."""
    import ctypes  # slow to import

    renameat2 = getattr(ctypes.CDLL(None), 'renameat2', None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE
    return renameat2 is not None and not renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange)


@contextlib.contextmanager
def exclusive_lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Holds an exclusive lock on a folder, which the system releases when the process ends.

    Raises BlockingIOError if the lock is taken; with `wait`, if it is still taken after a second.
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
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child process may have inherited the descriptor
    finally:
        os.close(fd)


def sync_to_disk(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
