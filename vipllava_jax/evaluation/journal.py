"""Answers on the disk as they come: JSONL whose first line says how they came about."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vipllava_jax.training.identity import changes

HEAD = 'settings'  # the key of the first line


class Journal:
    """A file of answers, or none; `records` are those that it has, by their number."""

    def __init__(self, file: Any, records: dict[int, dict[str, Any]]):
        self._file, self.records = file, records

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Adds records, each with its number `n`; on the disk when it returns."""
        new = [record for record in records if record['n'] not in self.records]
        self.records |= {record['n']: record for record in new}
        if self._file:
            _write(self._file, new)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str] | None, settings: dict[str, Any], restart: bool) -> Iterator[Journal]:
    """The file of answers that came about with these settings, begun if it is not there, or anew.

    Raises ValueError if it is of other settings, or none of ours, or written by another process. A line that
    was cut off when the process before ended is cut off for good.
    """
    if path is None:
        yield Journal(None, {})
        return
    settings = json.loads(json.dumps(settings))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open('a+b') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'{path}: another process is writing its answers there') from None
        first, *lines = _lines(path, file)
        if not first or restart:
            file.truncate(0)
            _write(file, [{HEAD: settings}])
            yield Journal(file, {})
            return
        try:
            before = json.loads(first)[HEAD]
            records = {record['n']: record for record in map(json.loads, lines)}
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{path} is damaged: give another --output, or --restart to begin anew'
            ) from None
        if told := changes(before, settings):
            raise ValueError(
                f'{path} holds answers that came about otherwise ({told}): give the same as then to go on, '
                'another --output, or --restart to begin anew'
            )
        yield Journal(file, records)


def _write(file: Any, records: Iterable[dict[str, Any]]) -> None:
    file.write(''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records).encode())
    file.flush()
    os.fsync(file.fileno())


def _lines(path: str | os.PathLike[str], file: Any) -> list[bytes]:
    """The lines of a file, which is left with whole ones only; one that is empty if there is none."""
    file.seek(0)
    whole, newline, cut = file.read().rpartition(b'\n')
    begun = f'{{"{HEAD}": '.encode()
    first = whole if newline else cut  # which may be the beginning of a first line
    if not (first.startswith(begun) or (not newline and begun.startswith(cut))):
        raise ValueError(f'{path} is no file of answers: give another --output')
    if newline and cut:
        file.truncate(len(whole) + 1)
    return whole.split(b'\n')
