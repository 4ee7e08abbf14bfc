"""The rows of a batch: those of a JSONL file or a JSON list, of any size, or of a stream such as stdin."""

import hashlib
import queue
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from vipllava_jax.data.row_offsets import MAX_ROW_BYTES, WINDOW_BYTES, is_list, locate_rows
from vipllava_jax.files import BOM, check_regular, naming, other_encoding
from vipllava_jax.signals import temporary_folder
from vipllava_jax.threads import background

SAMPLE, SAMPLES = 1 << 16, 256  # bytes; a file of up to 16 MiB is hashed completely
WAIT = 0.05  # seconds for which a reader waits for the next row of a stream
LINES_AHEAD = 4  # lines of a stream that are read in advance, each of up to MAX_ROW_BYTES


class RawRow(NamedTuple):
    """A row as read."""

    number: int  # of its line; in a list, of the row; from 1
    text: bytes  # its JSON; incomplete if the row is larger than MAX_ROW_BYTES
    size: int  # bytes
    end: int  # how much of the source has been read, in the unit of `Source.size`


class Source(Protocol):
    """Where rows come from."""

    @property
    def size(self) -> int | None:
        """The whole, in bytes or in rows; None if it is not known."""

    def rows(self) -> Iterator[RawRow | None]:
        """The rows in order; None means that the next one has not arrived yet."""

    def fingerprint(self) -> dict[str, str | int]:
        """What tells the rows from others; it does not depend on the folder in which they are."""


class FileRows:
    """The rows of a JSONL file or a JSON list, which are read one at a time."""

    def __init__(self, path: Path):
        if not path.exists():
            raise FileNotFoundError(f'no file or folder {str(path)!r}: check the path')
        check_regular(path)
        self.path, self.size = path, path.stat().st_size
        if next(locate_rows(path), None) is None:
            raise ValueError(f'{path} has no rows')

    def rows(self) -> Iterator[RawRow]:
        counts_rows = is_list(self.path)
        with naming(self.path), self.path.open('rb') as file:
            for number, (start, size, line) in enumerate(locate_rows(self.path), 1):
                file.seek(start)
                text = file.read(size) if size <= MAX_ROW_BYTES else b''
                yield RawRow(number if counts_rows else line, text, size, start + size)

    def fingerprint(self) -> dict[str, str | int]:
        """The size, and a hash of the content or, of a large file, of samples from its start to its end."""
        digest = hashlib.blake2b(digest_size=16)
        last = max(self.size - SAMPLE, 0)
        with self.path.open('rb', buffering=0) as file:
            for n in range(SAMPLES):
                file.seek(last * n // (SAMPLES - 1) if self.size > SAMPLE * SAMPLES else SAMPLE * n)
                digest.update(file.read(SAMPLE))
        return {'bytes': self.size, 'hash': digest.hexdigest()}


class StreamRows:
    """The rows of a stream, read on a thread of its own; a list is first copied to a temporary file."""

    size = None

    def __init__(self, stream: IO[bytes], name: str):
        self.stream, self.blank = stream, 0  # the number of blank lines at the start
        self.head = stream.readline(WINDOW_BYTES)
        while self.head and not self.head.removeprefix(BOM).strip():
            self.head, self.blank = stream.readline(WINDOW_BYTES), self.blank + 1
        if not self.head:
            raise ValueError(f'{name} has no rows')
        if encoding := other_encoding(self.head[:4]):
            raise ValueError(f'{name} is {encoding}: write it in UTF-8')

    def rows(self) -> Iterator[RawRow | None]:
        is_list = self.head.removeprefix(BOM).lstrip().startswith(b'[')
        return read_ahead(self._of_list() if is_list else self._of_lines())

    def fingerprint(self) -> dict[str, str | int]:
        """A hash of the start of the first row: the others are not known yet."""
        return {'start': hashlib.blake2b(self.head, digest_size=16).hexdigest()}

    def _of_list(self) -> Iterator[RawRow]:
        with temporary_folder('vipllava-batch-') as folder:
            path = Path(folder) / 'rows.json'
            with path.open('wb') as file:
                file.write(self.head)
                shutil.copyfileobj(self.stream, file, WINDOW_BYTES)
            yield from FileRows(path).rows()

    def _of_lines(self) -> Iterator[RawRow]:
        """The lines that are not blank; of one that is too long, only the start is kept."""
        number, end, piece = self.blank, 0, self.head
        while piece:
            number, pieces, size = number + 1, [piece], len(piece)
            while not piece.endswith(b'\n') and (piece := self.stream.readline(WINDOW_BYTES)):
                size += len(piece)
                if size <= MAX_ROW_BYTES:
                    pieces.append(piece)
            end += size
            if text := b''.join(pieces).removeprefix(BOM).strip():
                yield RawRow(number, text, size, end)
            piece = self.stream.readline(WINDOW_BYTES)


def read_ahead(rows: Iterable[RawRow]) -> Iterator[RawRow | None]:
    """Rows read in the background, a few ahead; None whenever the next one has not arrived within `WAIT`."""
    ready: queue.Queue[RawRow | None] = queue.Queue(LINES_AHEAD)

    def read() -> None:
        try:
            for row in rows:
                ready.put(row)
        finally:
            ready.put(None)

    wait = background(read)
    while True:
        try:
            row = ready.get(timeout=WAIT)
        except queue.Empty:
            yield None
            continue
        if row is None:
            wait()  # raises the error of reading
            return
        yield row
