"""The answers of a batch: JSON lines, which are appended as they come and outlive every interruption."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from vipllava_jax.batch_files.ids import IdSet
from vipllava_jax.batch_files.lines import is_error, is_line, line_id
from vipllava_jax.batch_files.run_file import SUFFIX, Run, check_same, read_run, run_path, write_run
from vipllava_jax.data.row_offsets import MAX_ROW_BYTES
from vipllava_jax.files import (
    append,
    check_regular,
    check_writable,
    lock_for_appending,
    naming,
    parse_record,
    replacing,
)
from vipllava_jax.messages import safe_json

SYNC_SECONDS = 5.0  # the most that a failure of the computer itself costs; of the process, it costs nothing
MAX_LINE_BYTES = 2 * MAX_ROW_BYTES
ADVICE = 'give another name for the output'


class Output:
    """A file of answers that is open for appending: its ids, and how many lines of each kind it has."""

    def __init__(self, path: Path, file: IO[bytes], settings: dict[str, Any]):
        self.path, self.file, self.settings = path, file, settings
        self.ids, self.answers, self.errors, self.lines = IdSet(), 0, 0, 0
        self._synced = time.monotonic()

    def write(self, lines: Sequence[dict[str, Any]]) -> None:
        """Appends lines; an OSError says how many lines are kept."""
        if lines:
            data = ''.join(safe_json(line) + '\n' for line in lines).encode()
            now = time.monotonic()
            is_due = now - self._synced > SYNC_SECONDS
            with self._saying_what_is_kept():
                append(self.path, self.file.fileno(), data, sync=is_due)
            self._synced = now if is_due else self._synced
        for line in lines:
            self.count(line)

    def count(self, line: dict[str, Any]) -> None:
        """Counts a line that the file holds; its id may not occur twice."""
        self.lines += 1
        self.errors += is_error(line)
        self.answers += not is_error(line)
        if not self.ids.add(line_id(line)):
            raise ValueError(f'{self.path}, line {self.lines}, repeats the id of an earlier one: {ADVICE}')

    def complete(self) -> None:
        """Records that there is a line for every row."""
        with self._saying_what_is_kept():
            os.fsync(self.file.fileno())
            write_run(self.path, Run(self.settings, self.counts()))

    def counts(self) -> dict[str, int]:
        """How many answers, errors and bytes there are."""
        size = os.fstat(self.file.fileno()).st_size
        return {'answers': self.answers, 'errors': self.errors, 'bytes': size}

    @contextlib.contextmanager
    def _saying_what_is_kept(self) -> Iterator[None]:
        try:
            with naming(self.path):
                yield
        except OSError as error:
            kept = f'{error.strerror}: its {self.lines:,} lines are kept, and the same command continues'
            raise OSError(error.errno, kept, str(self.path)) from None


def check_output_name(path: Path) -> None:
    """Raises ValueError or OSError if no answers can be written there."""
    if path.suffix != SUFFIX:
        raise ValueError(f'{path}: expected a name that ends in {SUFFIX}, such as answers{SUFFIX}')
    check_writable(path)
    if path.exists():
        check_regular(path)


@contextlib.contextmanager
def open_output(path: Path, settings: dict[str, Any], retry_errors: bool = False) -> Iterator[Output]:
    """Opens, or creates, the file of the answers that these settings give, and locks it.

    An incomplete last line, of a process that was killed, is removed, and with `retry_errors` all lines with
    errors. The seed becomes that of the answers that are there. Raises ValueError for a file that is not of
    this kind, that has answers with other settings, or that another process is writing; it is unchanged then.
    """
    check_output_name(path)
    is_new = not path.exists()
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_open_locked(path))
        try:
            settings = _continued(path, file, settings)
            output = Output(path, file, settings)
            size = _read(output)
            os.ftruncate(file.fileno(), size)
            write_run(path, Run(settings))
        except BaseException:
            if is_new:
                path.unlink()
            raise
        if retry_errors and output.errors:
            output = Output(path, stack.enter_context(_without_errors(path, file)), settings)
            _read(output)
        yield output
        with contextlib.suppress(OSError):
            os.fsync(output.file.fileno())


def is_complete(path: Path, settings: dict[str, Any]) -> Run | None:
    """What is known of a file that has a line for every row, which these settings gave; None otherwise."""
    run = read_run(path) if path.exists() else None
    if run is None or run.complete is None or run.complete['bytes'] != path.stat().st_size:
        return None
    check_same(path, run.settings, settings)
    return run


def read_lines(path: Path, file: IO[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a file of answers but an incomplete last one; ValueError names one that is damaged."""
    file.seek(0)
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if not line.endswith(b'\n') and len(line) < MAX_LINE_BYTES:
            return
        where = f'{path}, line {number}'
        record = parse_record(line, where, ADVICE)
        if not is_line(record):
            raise ValueError(f'{where} is neither an answer nor an error of a batch: {ADVICE}')
        yield line, record


def _open_locked(path: Path) -> IO[bytes]:
    """Opens and locks a file; another process that replaces it meanwhile is noticed."""
    while True:
        file = path.open('a+b', buffering=0)
        try:
            lock_for_appending(path, file.fileno())
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _continued(path: Path, file: IO[bytes], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a file of answers, new or not; ValueError if it may not be continued."""
    run, settings = read_run(path), json.loads(json.dumps(settings))
    if not os.fstat(file.fileno()).st_size:
        return settings
    if run is None:
        raise ValueError(
            f'{path} exists, but is no file of answers, because there is no {run_path(path).name}: {ADVICE}'
        )
    check_same(path, run.settings, settings)
    return run.settings


def _read(output: Output) -> int:
    """Counts the lines of a file; returns the bytes of the complete ones."""
    size = 0
    with output.path.open('rb') as file:
        for line, record in read_lines(output.path, file):
            output.count(record)
            size += len(line)
    return size


@contextlib.contextmanager
def _without_errors(path: Path, file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Replaces a file by its answers alone, and yields the new one, locked."""
    with contextlib.ExitStack() as stack:
        with replacing(path) as fresh:
            new = stack.enter_context(fresh.open('a+b', buffering=0))
            lock_for_appending(path, new.fileno())
            with path.open('rb') as old:
                for line, record in read_lines(path, old):
                    if not is_error(record):
                        append(path, new.fileno(), line, sync=False)
            os.fsync(new.fileno())
        yield new
