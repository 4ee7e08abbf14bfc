"""Folders that are written whole or not at all.

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

from vipllava_jax.files import same_file
from vipllava_jax.messages import CheckpointError, amount, printable
from vipllava_jax.places import REPLACED, locked, put, sync
from vipllava_jax.signals import unfinished

PARTIAL = re.compile(rf'\.partial-\d+({REPLACED})?$')


def listing(folder: Path) -> str:
    """What lies in a folder, in a few words, for an error."""
    try:
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f'{folder}: cannot be read: {error.strerror}') from None
    names = [printable(name, 60) for name in found[:12]]
    return ', '.join(names) + (', …' if len(found) > 12 else '') if found else 'nothing'


def apart(source: Path, target: Path) -> None:
    """Raises CheckpointError if one folder is, or lies in, the other, by whatever path or link."""
    inner, outer = target.resolve(), source.resolve()
    if any(same_file(outer, at) for at in (inner, *inner.parents)) or any(
        same_file(inner, at) for at in outer.parents
    ):
        raise CheckpointError(f'{target}: is, or lies in, or holds {source}; choose a place beside it')


def check_place(folder: Path, overwrite: bool) -> None:
    """CheckpointError for what `beside` would refuse before anything is known of what is to be written."""
    place = _destination(folder)
    _check_free(place, lambda _: True, overwrite)
    if place.parent.is_dir():
        _check_alone(place)


def check_only(folder: Path, patterns: Iterable[str]) -> None:
    """CheckpointError if a folder that is to be replaced holds anything whose name matches no pattern."""
    patterns = [*patterns]
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not any(fnmatch(path.name, pattern) for pattern in patterns):
            raise CheckpointError(
                f'{folder}: holds {path.name}, which is not of a model and would be lost; '
                'move it away or choose another place'
            )


@contextlib.contextmanager
def beside(folder: Path, size: int, ours: Callable[[Path], bool], overwrite: bool) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place, whole and on the disk, when the block ends well.

    Where `folder` is a link, what it points to is written. Before the block, raises CheckpointError if the
    place is taken, cannot be written, has no room for `size` bytes, or if another process is writing there.
    Only an empty folder, or with `overwrite` one that is `ours`, is ever replaced.
    """
    folder = _destination(folder)
    _check_free(folder, ours, overwrite)
    partial = folder.parent / f'.{folder.name}.partial-{os.getpid()}'
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, partial):
            _check_free(folder, ours, overwrite)  # what a process that died had moved aside may be back
            free = shutil.disk_usage(folder.parent).free
            if free < size:
                raise CheckpointError(
                    f'{folder}: takes {amount(size)}, {amount(size - free)} more than the disk has free'
                )
            with unfinished(str(partial)):
                yield partial
                for path in (*partial.rglob('*'), partial):
                    sync(path)
                put(partial, folder, _replaceable(folder, ours, overwrite))
        sync(folder.parent)
    except OSError as error:
        raise CheckpointError(f'{folder}: {_trouble(error, partial, size)}') from None
    finally:
        with _moment(folder.parent):
            _sweep(folder)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()  # which only an empty folder allows


def _destination(folder: Path) -> Path:
    """The absolute path of the folder to which a path leads, perhaps by links, and which may not be there."""
    place = Path(os.path.realpath(folder))
    if place.is_symlink():
        raise CheckpointError(f'{folder}: a link that leads to itself; choose another place')
    if place.exists() and os.path.ismount(place):
        raise CheckpointError(f'{folder}: a mount point, which cannot be replaced; choose a folder in it')
    return place


def _check_free(folder: Path, ours: Callable[[Path], bool], overwrite: bool) -> None:
    """CheckpointError if there is something that must not be replaced."""
    if folder.exists() and not _replaceable(folder, ours, overwrite):
        told = 'exists, and is not a model that we wrote' if overwrite else 'exists'
        raise CheckpointError(f'{folder}: {told}; choose another place')


def _replaceable(folder: Path, ours: Callable[[Path], bool], overwrite: bool) -> bool:
    return folder.is_dir() and (not any(folder.iterdir()) or (overwrite and ours(folder)))


def _trouble(error: OSError, partial: Path, size: int) -> str:
    """What a failed write is about, and the file."""
    file = f' ({error.filename})' if error.filename else ''
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f'cannot be written: {error.strerror or error}{file}'
    missing = 0
    with contextlib.suppress(OSError):
        written = sum(path.stat().st_size for path in partial.rglob('*') if path.is_file())
        missing = size - written - shutil.disk_usage(partial.parent).free
    return 'the disk is full' + (f', {amount(missing)} are missing' if missing > 0 else '') + file


@contextlib.contextmanager
def _alone(folder: Path, partial: Path) -> Iterator[None]:
    """Makes the partial folder and holds it, unless another process has one for the same place."""
    with contextlib.ExitStack() as stack:
        with _moment(folder.parent):
            _check_alone(folder)
            partial.mkdir()
            stack.enter_context(locked(partial))
        yield


def _check_alone(folder: Path) -> None:
    """CheckpointError if another process is writing what is to be a folder."""
    if _sweep(folder):
        raise CheckpointError(
            f'{folder}: another process is writing there: wait for it, or choose another place'
        )


@contextlib.contextmanager
def _moment(parent: Path) -> Iterator[None]:
    """Lets no other process begin or end writing beside this one's folder, if the file system can do that."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(locked(parent, wait=True))
        yield


def _sweep(folder: Path) -> bool:
    """Removes what was begun beside a folder and not finished; whether a living process still writes some.

    A folder that was moved aside, and whose successor did not come, is put back.
    """
    living = False
    for path in folder.parent.glob(f'.{glob.escape(folder.name)}.partial-*'):
        if not PARTIAL.search(path.name) or path.is_symlink() or not path.is_dir():
            continue
        try:
            with locked(path):
                if path.name.endswith(REPLACED) and not folder.exists():
                    path.rename(folder)
                else:
                    shutil.rmtree(path)
        except BlockingIOError:
            living = True
        except OSError:
            pass  # gone meanwhile, or not ours to remove
    return living
