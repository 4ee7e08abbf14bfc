"""Reads regular files of bounded size, and replaces files atomically."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vipllava_jax.messages import CheckpointError, amount, brief, one_line
from vipllava_jax.signals import unfinished

LARGEST = 16 << 20  # maximum size of a JSON file in bytes; its objects take up to thirty times as much memory
BOM = b'\xef\xbb\xbf'
ENCODINGS = (  # recognized by the first four bytes; UTF-32 must come before UTF-16
    ('UTF-32', re.compile(rb'\xff\xfe\0\0|\0\0\xfe\xff|[^\0]\0\0\0|\0\0\0[^\0]', re.DOTALL)),
    ('UTF-16', re.compile(rb'\xff\xfe|\xfe\xff|[^\0]\0|\0[^\0]', re.DOTALL)),
)
SPECIAL = (
    (stat.S_ISDIR, 'a folder'),
    (stat.S_ISFIFO, 'a FIFO'),
    (stat.S_ISCHR, 'a device'),
    (stat.S_ISBLK, 'a device'),
    (stat.S_ISSOCK, 'a socket'),
)


def read_bytes(path: Path, limit: int = LARGEST) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises CheckpointError for anything else. FIFOs and devices are refused before they are opened: opening a
    FIFO would wait for a writer, and a device may never end.
    """
    try:
        check_regular(path)
        with open(path, 'rb') as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from None
    if len(data) > limit:
        raise CheckpointError(f'{path}: larger than {amount(limit)}, more than such a file needs')
    return data


def other_encoding(start: bytes) -> str | None:
    """'UTF-16' or 'UTF-32' if a text that starts with these bytes has that encoding, else None."""
    return next((name for name, first in ENCODINGS if first.match(start)), None)


def check_encoding(path: Path, start: bytes) -> None:
    """Raises CheckpointError if a file that starts with these bytes is UTF-16 or UTF-32, not UTF-8."""
    if name := other_encoding(start):
        raise CheckpointError(
            f'{path}: is {name}, expected UTF-8: save it as UTF-8, or iconv -f {name} -t UTF-8 it'
        )


def check_regular(path: Path) -> None:
    """Raises CheckpointError unless a path is a regular file or a link to one; OSError if it is missing."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        found = next((name for test, name in SPECIAL if test(mode)), 'a special file')
        raise CheckpointError(f'{path}: expected a regular file, found {found}')


def read_json(path: Path, *, optional: bool = False, limit: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file of at most `limit` bytes; {} if it is optional and does not exist."""
    if optional and not os.path.lexists(path):
        return {}
    try:
        data = json.loads(read_bytes(path, limit))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f'{path}: not JSON ({one_line(error)}); copy it again') from None
    if not isinstance(data, dict):
        raise CheckpointError(f'{path}: expected a JSON object, found {type(data).__name__}')
    return data


def parse_bounded_json(data: bytes, max_objects: int) -> dict[str, Any]:
    """The JSON object in bytes of unknown origin; ValueError if it holds more than `max_objects` objects.

    Objects take thirty times as much memory as their bytes. Repeated names are refused because JSON parsers
    treat them differently.
    """
    count = 0

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal count
        count += 1
        if count > max_objects:
            raise ValueError(f'more than {max_objects} objects in its JSON')
        fields = dict(pairs)
        if len(fields) < len(pairs):
            name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise ValueError(f'{brief(name)} occurs twice in one object')
        return fields

    try:
        content = json.loads(data, object_pairs_hook=build)
    except RecursionError:
        raise ValueError('its JSON is nested too deeply') from None
    if not isinstance(content, dict):
        raise ValueError(f'expected a JSON object, found {type(content).__name__}')
    return content


def parse_record(line: bytes, where: str, advice: str) -> dict[str, Any]:
    """The JSON object in a line; raises ValueError, with `where` and `advice`, if the line is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{where} is damaged: not JSON ({one_line(error)}): {advice}') from None
    if not isinstance(record, dict):
        raise ValueError(f'{where} is damaged: found {brief(record)}, expected an object: {advice}')
    return record


def write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=2) + '\n')


def write_text(path: Path, text: str) -> None:
    """Replaces the content of a file with a text, atomically."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding='utf-8')


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file with the same suffix, which replaces `path` after the block.

    If the block raises, the temporary file is removed and `path` is unchanged. If `path` is a link, its
    target is replaced. Anything other than a regular file, such as /dev/stdout, is written in place. An
    OSError names `path`.
    """
    target = path.resolve()
    fresh = target.with_name(f'.{target.stem[:80]}.{os.getpid()}.new{target.suffix}')
    try:
        with naming(path):
            check_writable(path)
            if (path.exists() and not path.is_file()) or path.is_relative_to('/dev'):
                yield path
                return
            with unfinished(str(fresh)):
                yield fresh
                if target.exists():
                    shutil.copymode(target, fresh)
                fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def lock_for_appending(path: Path, file: int) -> None:
    """Locks an open file of answers until it is closed; ValueError if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f'{path}: another process is writing its answers there') from None


def append(path: Path, file: int, data: bytes, *, sync: bool = True) -> None:
    """Appends to an open file and syncs it; on an OSError, which names the file, nothing is appended."""
    rest, size = memoryview(data), os.fstat(file).st_size
    with naming(path):
        try:
            while rest:  # unbuffered: closing a buffered file would try to write again
                rest = rest[os.write(file, rest) :]
            if sync:
                os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):  # if this fails too, the next run removes the incomplete line
                os.ftruncate(file, size)
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds a path to an OSError that the block raises; errors of writing to an open file have none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Raises ValueError if `output` is one of the inputs, and OSError if it cannot be written.

    If an input is a folder, the files in it are inputs. Files are compared by device and inode, so that links
    and other spellings of a path are recognized.
    """
    check_writable(output)
    for path in inputs:
        if same_file(output, path) or (path.is_dir() and holds(path, output)):
            raise ValueError(f'{output}: is also read ({path}) and would be overwritten; choose another path')


def check_writable(output: Path) -> None:
    """Raises OSError, naming the path and the reason, if no file can be written there."""
    parent = output.resolve().parent
    if output.is_dir():
        raise IsADirectoryError(errno.EISDIR, 'is a folder; give the name of a file', str(output))
    if not parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, f'there is no folder {str(parent)!r}', str(output))
    if not os.access(output if output.exists() else parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(output))


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are the same file or folder; neither has to exist."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return one.resolve() == other.resolve()


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or lies in it; links are followed."""
    resolved = path.resolve()
    return any(same_file(parent, folder) for parent in (resolved, *resolved.parents))


def holds(folder: Path, file: Path) -> bool:
    """Whether a file exists and is one of the files in a folder; links are followed on both sides."""
    return file.exists() and any(same_file(file, path) for path in folder.rglob('*'))
