"""Folders that are whole or not there, and the JSON files in them.

A folder is written under another name beside its place and renamed last, so that whoever is killed or
runs out of disk on the way leaves nothing that looks like a result.
"""

import contextlib
import errno
import glob
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vipllava_jax.places import REPLACED, locked, put, sync
from vipllava_jax.signals import unfinished

MESSAGE = 500  # characters of an error message, at most
LARGEST = 64 << 20  # bytes of a JSON file, several times what a tokenizer.json of 128,000 tokens has
CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')
PARTIAL = re.compile(rf'\.partial-\d+({REPLACED})?$')
SPECIAL = (
    (stat.S_ISDIR, 'a folder'),
    (stat.S_ISFIFO, 'a FIFO'),
    (stat.S_ISCHR, 'a device'),
    (stat.S_ISBLK, 'a device'),
    (stat.S_ISSOCK, 'a socket'),
)


class CheckpointError(ValueError):
    """What is wrong with a checkpoint, in one printable line that names the file and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str, limit: int = MESSAGE) -> str:
    """Text from anywhere as one line of at most `limit` characters that is safe to show on a terminal.

    Runs of white space become one space. Characters that are not printable (control characters, changes of
    the writing direction, lone surrogates) become their escapes. A longer text loses its middle, so that
    the file's name at its start and the advice at its end stay.
    """
    words = ' '.join(_cut(text, 10 * limit).split())
    return _cut(''.join(c if c.isprintable() else ascii(c)[1:-1] for c in words), limit)


def _cut(text: str, limit: int) -> str:
    """Text without its middle if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = limit * 3 // 5
    return f'{text[:head]} … {text[len(text) - (limit - head - 3) :]}'


def safe_answer(text: str) -> str:
    """Generated text in which control characters other than newline and tab become their escapes.

    A model's vocabulary comes with its checkpoint, and could otherwise send commands to the terminal.
    """
    return CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def safe_json(data: Any) -> str:
    """A JSON text on one line, its letters as they are, its control characters as JSON's escapes."""
    text = json.dumps(data, ensure_ascii=False)
    return CONTROL.sub(lambda match: f'\\u{ord(match[0]):04x}', text)


def brief(value: Any, limit: int = 80) -> str:
    """A value of JSON as it is shown in a message: its repr if that is short, else its type and size."""
    if isinstance(value, (str, bytes)):
        return printable(repr(value[:limit]) + ('…' if len(value) > limit else ''), limit + 8)
    if isinstance(value, int) and value.bit_length() > 200:
        return f'a whole number of {int(math.log10(abs(value))) + 1} digits'
    if isinstance(value, (list, tuple, dict, set)):
        entries = len(value)
        if entries > 16 or any(isinstance(part, (list, tuple, dict, set)) for part in value):
            return f'{"an object" if isinstance(value, dict) else "a list"} of {entries} entries'
        if isinstance(value, dict):
            return '{' + ', '.join(f'{brief(k, 16)}: {brief(v, 16)}' for k, v in value.items()) + '}'
        return '[' + ', '.join(brief(part, 16) for part in value) + ']'
    return printable(repr(value), limit)


def one_line(error: BaseException) -> str:
    """An error of any library, its type and what it says, short enough to be part of one of ours."""
    return printable(f'{type(error).__name__} {error}', 300)


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises CheckpointError for anything else. Opening a FIFO would wait for a writer, and a device may never
    end: both are refused without waiting.
    """
    try:
        check_regular(path)
        with open(path, 'rb') as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from None
    if len(data) > limit:
        raise CheckpointError(f'{path}: larger than {_amount(limit)}, which no file of this kind needs')
    return data


def check_regular(path: Path) -> None:
    """CheckpointError unless a path leads, perhaps by links, to a regular file; OSError if to nothing."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        found = next((name for test, name in SPECIAL if test(mode)), 'a special file')
        raise CheckpointError(f'{path}: expected a regular file, found {found}')


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file; {} if it is optional and not there."""
    if optional and not os.path.lexists(path):
        return {}
    try:
        data = json.loads(read_bytes(path))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f'{path}: not JSON ({one_line(error)}); get a whole copy of it') from None
    if not isinstance(data, dict):
        raise CheckpointError(f'{path}: expected a JSON object, found {type(data).__name__}')
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=2) + '\n')


def write_text(path: Path, text: str) -> None:
    """Puts a text in a file, which keeps what it had until the text is whole."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding='utf-8')


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path`, with the same suffix, which takes its place when the block ends well.

    Otherwise the new file is removed and `path` keeps what it had. Where `path` is a link, what it points
    to is replaced. Anything other than a regular file, such as /dev/stdout, is written in place. An OSError
    names `path`.
    """
    target = path.resolve()
    fresh = target.with_name(f'.{target.stem[:80]}.{os.getpid()}.new{target.suffix}')
    try:
        check_writable(path)
        if (path.exists() and not path.is_file()) or path.is_relative_to('/dev'):
            yield path
            return
        with unfinished(str(fresh)):
            yield fresh
            if target.exists():
                shutil.copymode(target, fresh)
            fresh.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        fresh.unlink(missing_ok=True)


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """ValueError if writing `output` would overwrite one of the inputs, or if it could not be written.

    Files are compared by device and inode, so that links and other spellings of a path are recognized.
    """
    check_writable(output)
    for path in inputs:
        if same_file(output, path):
            raise ValueError(
                f'{output}: is also read ({path}) and would be overwritten; choose another place for it'
            )


def check_writable(output: Path) -> None:
    """OSError, naming the path and saying why, if no file can be written there."""
    parent = output.resolve().parent
    if output.is_dir():
        raise IsADirectoryError(errno.EISDIR, 'is a folder; give the name of a file', str(output))
    if not parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f'there is no folder {str(parent)!r}', str(output))
    if not os.access(output if output.exists() else parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(output))


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file or folder, or would if it were there."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return one.resolve() == other.resolve()


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
                    f'{folder}: takes {_amount(size)}, {_amount(size - free)} more than the disk has free'
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
    return 'the disk is full' + (f', {_amount(missing)} are missing' if missing > 0 else '') + file


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


def _amount(size: int) -> str:
    return f'{size / 1e9:.2f} GB' if size >= 1e8 else f'{size / 1e6:.2f} MB'
