"""Folders that are whole or not there, and the JSON files in them.

A folder is written under another name beside its place and renamed last, so that whoever is killed or
runs out of disk on the way leaves nothing that looks like a result.
"""

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """What is wrong with a checkpoint, in one line that names the file and says what to do."""


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; {} if it is optional and not there."""
    if optional and not path.is_file():
        return {}
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f'{path}: not JSON ({error}); get a whole copy of it') from None
    if not isinstance(data, dict):
        raise CheckpointError(f'{path}: a JSON object expected, {type(data).__name__} found')
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=2) + '\n')


def write_text(path: Path, text: str) -> None:
    """Puts a text in a file, which has what it had until the text is whole."""
    fresh = path.with_name(f'.{path.name}.new')
    fresh.write_text(text, encoding='utf-8')
    fresh.replace(path)


def one_line(error: Exception) -> str:
    """An error of any library, its type and what it says, short enough to be part of one of ours."""
    return ' '.join(f'{type(error).__name__} {error}'.split())[:300]


def listing(folder: Path) -> str:
    """What lies in a folder, in a few words, for an error."""
    try:
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f'{folder}: cannot be read: {error.strerror}') from None
    return ', '.join(found[:20]) + (', …' if len(found) > 20 else '') if found else 'nothing'


def apart(source: Path, target: Path) -> None:
    """Raises CheckpointError if one folder is, or lies in, the other."""
    inner, outer = target.resolve(), source.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise CheckpointError(f'{target}: is, or lies in, or holds {source}; choose a place beside it')


@contextlib.contextmanager
def beside(folder: Path, size: int, ours: Callable[[Path], bool], overwrite: bool) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place, whole and on the disk, when the block ends well.

    Before that, raises CheckpointError if the place is taken, cannot be written or has no room for `size`
    bytes. Only an empty folder, or with `overwrite` one that is `ours`, is ever replaced.
    """
    folder = folder.absolute()
    if folder.exists() and not _replaceable(folder, ours, overwrite):
        told = 'exists, and is not a model that we wrote' if overwrite else 'exists'
        raise CheckpointError(f'{folder}: {told}; choose another place')
    partial = folder.parent / f'.{folder.name}.partial-{os.getpid()}'
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        free = shutil.disk_usage(folder.parent).free
        if free < size:
            raise CheckpointError(
                f'{folder}: takes {_amount(size)}, {_amount(size - free)} more than the disk has free'
            )
        partial.mkdir()
        with _locked(partial):
            yield partial
            for path in (*partial.rglob('*'), partial):
                _sync(path)
            if _replaceable(folder, ours, overwrite):
                folder.rename(partial.with_name(partial.name + '-replaced'))
            partial.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            written = sum(path.stat().st_size for path in partial.rglob('*') if path.is_file())
            free = shutil.disk_usage(folder.parent).free
            told = f'the disk is full, {_amount(size - written - free)} are missing'
        else:
            told = f'cannot be written: {error.strerror}' + (f' ({error.filename})' if error.filename else '')
        raise CheckpointError(f'{folder}: {told}') from None
    finally:
        _sweep(folder)


def _replaceable(folder: Path, ours: Callable[[Path], bool], overwrite: bool) -> bool:
    return folder.is_dir() and (not any(folder.iterdir()) or (overwrite and ours(folder)))


def _sweep(folder: Path) -> None:
    """Removes what was begun beside a folder and not finished, but for what a living process still writes."""
    for path in folder.parent.glob(f'.{glob.escape(folder.name)}.partial-*'):
        with contextlib.suppress(OSError), _locked(path):
            shutil.rmtree(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process alone; the lock goes with the process, however that ends."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _amount(size: int) -> str:
    return f'{size / 1e9:.2f} GB' if size >= 1e8 else f'{size / 1e6:.2f} MB'
