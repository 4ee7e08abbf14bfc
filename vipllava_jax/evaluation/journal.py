"""A file of answers, appended batch by batch: JSONL whose first line holds the settings."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vipllava_jax.files import LARGEST, append, check_regular, lock_for_appending, parse_record
from vipllava_jax.messages import brief, describe_changes

SETTINGS = 'settings'  # the key of the first line
FIELDS: dict[str, Any] = {
    'n': int,
    'id': str,
    'task': str,
    'question': str,
    'answer': str,
    'finished': bool,
}  # of the other lines
EXPECTED = {str: 'a string', bool: 'true or false'}


class Journal:
    """A file of answers, if any; `records` are its answers by number."""

    def __init__(self, file: Any, records: dict[int, dict[str, Any]], path: Path = Path()):
        self._file, self.records, self.path = file, records, path

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Appends records, each with its number `n`, and syncs the file."""
        new = [record for record in records if record['n'] not in self.records]
        self.records |= {record['n']: record for record in new}
        if self._file:
            _append(self.path, self._file.fileno(), new)


@contextlib.contextmanager
def open_journal(
    path: str | os.PathLike[str] | None, settings: dict[str, Any], restart: bool, count: int = 2**31
) -> Iterator[Journal]:
    """Opens, or creates, the file of answers to `count` questions with these settings.

    With `restart` an existing file is emptied. Otherwise raises ValueError if it is damaged or has other
    settings. A file that another process is writing, or that is not one of answers, is always refused and
    left unchanged. An incomplete last line, of a process that was killed, is removed.
    """
    if path is None:
        yield Journal(None, {})
        return
    path = Path(path)
    settings = json.loads(json.dumps(settings))
    _prepare_folder(path)
    is_new = not path.exists()
    with path.open('a+b') as file:
        lock_for_appending(path, file.fileno())
        stored = _read_settings(path, file, settings)
        if stored is None or restart:
            file.truncate(0)
            try:
                _append(path, file.fileno(), [{SETTINGS: settings}])
            except OSError:
                if is_new:
                    path.unlink()
                raise
            yield Journal(file, {}, path)
            return
        if changed := describe_changes(stored, settings):
            raise ValueError(
                f'{path} holds answers with other settings ({changed}): give the same settings to continue, '
                'another --output, or --restart to start again'
            )
        records, size = _read_answers(path, file, count, settings)
        os.ftruncate(file.fileno(), size)
        yield Journal(file, records, path)


def read_journal(path: Path, settings: dict[str, Any], count: int) -> dict[int, dict[str, Any]]:
    """The answers in the file of another process, which may still be writing, by number.

    Raises ValueError if the file is damaged or has other settings, and OSError if it is missing.
    """
    check_regular(path)
    with path.open('rb') as file:
        settings = json.loads(json.dumps(settings))
        stored = _read_settings(path, file, settings)
        if stored is None:
            return {}
        if changed := describe_changes(stored, settings):
            raise ValueError(
                f'{path} holds answers with other settings ({changed}): give the settings with which the '
                'parts were answered'
            )
        return _read_answers(path, file, count, settings)[0]


def _prepare_folder(path: Path) -> None:
    """Creates the folder of a file of answers; ValueError or OSError if the file cannot be created there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        check_regular(path)


def _read_settings(path: Path, file: Any, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the settings in the first line of a file; None if that line is incomplete.

    Raises ValueError if the file is not one of answers, and must not be changed.
    """
    file.seek(0)
    first = file.readline(LARGEST)
    try:
        if not first.endswith(b'\n'):
            if _line({SETTINGS: settings}).startswith(first):
                return None
            raise ValueError
        head = json.loads(first)
        if not isinstance(head, dict) or [*head] != [SETTINGS] or not {'data', 'fit'} <= {*head[SETTINGS]}:
            raise ValueError
        return head[SETTINGS]
    except (ValueError, TypeError, RecursionError):
        raise ValueError(
            f'{path} is not a file of answers: its first line is not {{"{SETTINGS}": ...}}; '
            'give another --output'
        ) from None


def _read_answers(
    path: Path, file: Any, count: int, settings: dict[str, Any]
) -> tuple[dict[int, dict[str, Any]], int]:
    """The answers in the lines after the first, by number, and the bytes before an incomplete last line."""
    fields = FIELDS | ({'choice': str} if settings.get('choose') else {})
    records = {}
    size = file.tell()
    for number, line in enumerate(file, 2):
        if not line.endswith(b'\n'):
            break
        record = _parse_answer(f'{path}, line {number}', line, count, fields)
        records[record['n']] = record
        size += len(line)
    return records, size


def _parse_answer(where: str, line: bytes, count: int, fields: dict[str, Any]) -> dict[str, Any]:
    """The answer in a line; ValueError names an invalid field."""
    advice = 'give another --output, or --restart to start again'
    record = parse_record(line, where, advice)
    for name, type_ in fields.items():
        value: Any = record.get(name)
        if type(value) is not type_ or (name == 'n' and not 0 <= value < count):
            found = f'is {brief(value)}' if name in record else 'is missing'
            expected = f'a number from 0 to {count - 1}' if name == 'n' else EXPECTED[type_]
            raise ValueError(f'{where} is damaged: "{name}" {found}, expected {expected}: {advice}')
    return record


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + '\n').encode()


def _append(path: Path, file: int, records: Iterable[dict[str, Any]]) -> None:
    append(path, file, b''.join(map(_line, records)))
