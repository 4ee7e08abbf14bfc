"""Writes folders completely or not at all.

A folder is written under a temporary name in the same parent folder and renamed at the end, so that a process
that is killed or runs out of disk space leaves nothing that looks like a result.
"""

import contextlib
import errno
import glob
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from vipllava_jax.atomic import REPLACED, exclusive_lock, move_into_place, sync_to_disk
from vipllava_jax.files import lies_in
from vipllava_jax.messages import CheckpointError, amount, printable
from vipllava_jax.signals import unfinished

PARTIAL = re.compile(rf'\.partial-\d+({REPLACED})?$')


def listing(folder: Path) -> str:
    """The first names in a folder, for an error message."""
    try:
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f'{folder}: cannot be read: {error.strerror}') from None
    names = [printable(name, 60) for name in found[:12]]
    return ', '.join(names) + (', …' if len(found) > 12 else '') if found else 'nothing'


def check_apart(source: Path, target: Path) -> None:
    """Raises CheckpointError if one folder is the other or lies in it; links are followed."""
    if lies_in(target, source) or lies_in(source, target):
        raise CheckpointError(
            f'{target}: is the same as, lies in, or contains {source}; choose another folder'
        )


def check_new_folder(folder: Path, overwrite: bool) -> None:
    """Raises CheckpointError if `new_folder` would refuse this folder, whatever its content or size."""
    place = _resolve(folder)
    _check_free(place, lambda _: True, overwrite)
    if place.parent.is_dir():
        _check_unused(place)


def check_no_other_files(folder: Path, patterns: Iterable[str]) -> None:
    """Raises CheckpointError if a folder to be replaced holds a file that matches none of the patterns."""
    patterns = [*patterns]
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not any(fnmatch(path.name, pattern) for pattern in patterns):
            raise CheckpointError(
                f'{folder}: holds {path.name}, which does not belong to a model and would be lost; '
                'move it away or choose another folder'
            )


@contextlib.contextmanager
def new_folder(folder: Path, size: int, is_ours: Callable[[Path], bool], overwrite: bool) -> Iterator[Path]:
    """Yields the path of a temporary folder, which is synced to disk and renamed to `folder` after the block.

    If the block raises, nothing is left. If `folder` is a link, its target is written. Before the block,
    raises CheckpointError if `folder` exists, cannot be written, has no room for `size` bytes, or is being
    written by another process. Only an empty folder is replaced or, with `overwrite`, one
    for which `is_ours` returns True.
    """
    folder = _resolve(folder)
    _check_free(folder, is_ours, overwrite)
    partial = folder.parent / f'.{folder.name}.partial-{os.getpid()}'
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _new_locked_folder(folder, partial):
            _check_free(folder, is_ours, overwrite)  # recovery may have put a folder back
            free = shutil.disk_usage(folder.parent).free
            if free < size:
                raise CheckpointError(
                    f'{folder}: takes {amount(size)}, {amount(size - free)} more than the disk has free'
                )
            yield partial
            for path in (*partial.rglob('*'), partial):
                sync_to_disk(path)
            move_into_place(partial, folder, _replaceable(folder, is_ours, overwrite))
        sync_to_disk(folder.parent)
    except OSError as error:
        raise CheckpointError(f'{folder}: {_write_failure(error, partial, size)}') from None
    finally:
        with _parent_lock(folder.parent):
            _remove_leftovers(folder)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()  # fails unless it is empty


def _resolve(folder: Path) -> Path:
    """The absolute path of a folder, with links resolved; the folder does not have to exist."""
    place = Path(os.path.realpath(folder))
    if place.is_symlink():
        raise CheckpointError(f'{folder}: a link that leads to itself; choose another folder')
    if place.exists() and os.path.ismount(place):
        raise CheckpointError(f'{folder}: a mount point, which cannot be replaced; choose a folder in it')
    return place


def _check_free(folder: Path, is_ours: Callable[[Path], bool], overwrite: bool) -> None:
    """Raises CheckpointError if the folder exists and must not be replaced."""
    if folder.exists() and not _replaceable(folder, is_ours, overwrite):
        reason = 'exists, and is not a model that vipllava wrote' if overwrite else 'exists'
        advice = ', or replace it with overwrite (--overwrite)' if folder.is_dir() and not overwrite else ''
        raise CheckpointError(f'{folder}: {reason}; choose another folder{advice}')


def _replaceable(folder: Path, is_ours: Callable[[Path], bool], overwrite: bool) -> bool:
    return folder.is_dir() and (not any(folder.iterdir()) or (overwrite and is_ours(folder)))


def _write_failure(error: OSError, partial: Path, size: int) -> str:
    """The reason why writing failed, with the file and, for a full disk, the number of missing bytes."""
    file = f' ({error.filename})' if error.filename else ''
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f'cannot be written: {error.strerror or error}{file}'
    missing = 0
    with contextlib.suppress(OSError):
        written = sum(path.stat().st_size for path in partial.rglob('*') if path.is_file())
        missing = size - written - shutil.disk_usage(partial.parent).free
    return 'the disk is full' + (f', {amount(missing)} are missing' if missing > 0 else '') + file


@contextlib.contextmanager
def _new_locked_folder(folder: Path, partial: Path) -> Iterator[None]:
    """Creates and locks the partial folder, unless another process is writing to `folder`."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(unfinished(str(partial)))  # first: a signal may arrive right after `mkdir`
        with _parent_lock(folder.parent):
            _check_unused(folder)
            partial.mkdir()
            stack.enter_context(exclusive_lock(partial))
        yield


def _check_unused(folder: Path) -> None:
    """Raises CheckpointError if another process is writing to the folder."""
    if _remove_leftovers(folder):
        raise CheckpointError(
            f'{folder}: another process is writing there: wait for it, or choose another folder'
        )


@contextlib.contextmanager
def _parent_lock(parent: Path) -> Iterator[None]:
    """Locks the parent folder for a moment, so that no other process starts or finishes a folder in it.

    On a file system without locks, this does nothing.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(exclusive_lock(parent, wait=True))
        yield


def _remove_leftovers(folder: Path) -> bool:
    """Removes partial folders that ended processes left; returns whether a running process has one.

    A folder that was moved aside to be replaced, but was not because the process died, is moved back.
    """
    alive = False
    for path in folder.parent.glob(f'.{glob.escape(folder.name)}.partial-*'):
        if not PARTIAL.search(path.name) or path.is_symlink() or not path.is_dir():
            continue
        try:
            with exclusive_lock(path):
                if path.name.endswith(REPLACED) and not folder.exists():
                    path.rename(folder)
                else:
                    shutil.rmtree(path)
        except BlockingIOError:
            alive = True
        except OSError:
            pass  # already gone, or no permission
    return alive
