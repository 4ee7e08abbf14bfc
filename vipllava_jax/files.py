"""Files: only regular ones of bounded size are read, and one is replaced only by a whole one."""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vipllava_jax.messages import CheckpointError, amount, one_line
from vipllava_jax.signals import unfinished

LARGEST = 64 << 20  # bytes of a JSON file, several times what a tokenizer.json of 128,000 tokens has
SPECIAL = (
    (stat.S_ISDIR, 'a folder'),
    (stat.S_ISFIFO, 'a FIFO'),
    (stat.S_ISCHR, 'a device'),
    (stat.S_ISBLK, 'a device'),
    (stat.S_ISSOCK, 'a socket'),
)


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
        raise CheckpointError(f'{path}: larger than {amount(limit)}, which no file of this kind needs')
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
