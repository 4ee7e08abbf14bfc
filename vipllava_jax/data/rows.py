"""The rows of JSON and JSONL files: `index_rows` finds all rows, and `rows[i]` reads one from its file."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.data.row_offsets import MAX_ROW_BYTES, is_list, locate_rows
from vipllava_jax.data.row_values import check_values, is_safe_json
from vipllava_jax.messages import brief, one_line, printable

MAX_FILES = 255
MAX_IMAGES = 255  # per row
# the errors of code that reads fields of an unexpected form
FORM_ERRORS = (TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError)


class BrokenRow(ValueError):
    """A row that cannot be used; one printable line says where it is and what is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@contextlib.contextmanager
def raising_broken_row(where: str) -> Iterator[None]:
    """Turns the errors of code that reads a row's fields and pictures into BrokenRow with its location."""
    try:
        yield
    except BrokenRow:
        raise
    except (ValueError, OSError) as error:
        raise BrokenRow(f'{where}: {error}') from None
    except FORM_ERRORS as error:
        raise BrokenRow(f'{where}: a field has the wrong form ({one_line(error)})') from None


class Row(NamedTuple):
    """One example in a file, as read."""

    name: str  # its id, or its location
    where: str  # 'mix.json, row 12 (line 340)'
    fields: dict[str, Any]
    images: tuple[Path, ...]
    folder: Path  # the folder of the pictures and other files that the row names


def row_from_fields(fields: dict[str, Any], where: str, folder: Path) -> Row:
    """The fields of an example -> the row; BrokenRow for an invalid value, id or path of a picture."""
    with raising_broken_row(where):
        check_values(fields)
    return _make_row(fields, where, folder)


def _make_row(fields: dict[str, Any], where: str, folder: Path) -> Row:
    image = fields.get('image')
    names = image if isinstance(image, list) else [] if image is None else [image]
    if not all(isinstance(name, str) and name for name in names):
        raise BrokenRow(f'{where}: "image" is {brief(image)}, expected a path, or a list of paths')
    if len(names) > MAX_IMAGES:
        raise BrokenRow(f'{where}: "image" holds {len(names)} pictures, expected at most {MAX_IMAGES}')
    if not isinstance(fields.get('id'), str | int | float | None):
        raise BrokenRow(f'{where}: "id" is {brief(fields["id"])}, expected a string or a number')
    name = where if fields.get('id') is None else str(fields['id'])
    return Row(name, where, fields, tuple(folder / name for name in names), folder)


def _parse_row(text: bytes, where: str, folder: Path) -> Row:
    """Parses the JSON object of a row; BrokenRow if it is not one, or holds an invalid value."""
    try:
        fields = json.loads(text.decode())
    except RecursionError:
        raise BrokenRow(f'{where}: nested too deeply') from None
    except ValueError as error:
        raise BrokenRow(f'{where}: not JSON ({error})') from None
    if not isinstance(fields, dict):
        raise BrokenRow(f'{where}: expected a JSON object, found {type(fields).__name__}')
    return (_make_row if is_safe_json(text) else row_from_fields)(fields, where, folder)


@dataclass(frozen=True, eq=False)
class Rows:
    """An index of the rows of several files, 26 bytes per row; `rows[i]` reads one from its file."""

    files: tuple[Path, ...]
    is_list: tuple[bool, ...]  # which of the files are one JSON list
    folder: Path | None  # the folder of the pictures; None: the folder of the row's file
    file: np.ndarray  # N uint8, the number of its file
    start: np.ndarray  # N int64, its first byte
    size: np.ndarray  # N int32, in bytes
    line: np.ndarray  # N int32, of its first byte, from 1
    number: np.ndarray  # N int32, in its file, from 0
    image_counts: np.ndarray  # N uint8, how many pictures it has
    text_lengths: np.ndarray  # N int32, characters of its conversation
    errors: tuple[str, ...] = ()  # messages about the first rows that were skipped
    skipped: int = 0  # broken rows that are not in the index
    truncated: int = 0  # rows longer than max_length
    without_answer: int = 0  # rows among the truncated ones whose answers are cut off completely

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, i: int) -> Row:
        """Reads a row; raises BrokenRow if it is invalid."""
        path, where = self.files[self.file[i]], self.where(i)
        if self.size[i] > MAX_ROW_BYTES:
            raise BrokenRow(f'{where}: {self.size[i]:,} bytes or more, expected at most {MAX_ROW_BYTES:,}')
        with path.open('rb') as file:
            file.seek(self.start[i])
            text = file.read(self.size[i])
        return _parse_row(text, where, path.parent if self.folder is None else self.folder)

    def where(self, i: int) -> str:
        """The file and line of a row, for messages."""
        file, line = self.file[i], self.line[i]
        row = f'row {self.number[i]} (line {line})' if self.is_list[file] else f'line {line}'
        return f'{self.files[file]}, {row}'

    def select(self, chosen: np.ndarray, **changes: Any) -> 'Rows':
        """The rows given by a mask or indices N, with other values of the fields in `changes`."""
        per_row = ('file', 'start', 'size', 'line', 'number', 'image_counts', 'text_lengths')
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Rows(**{**fields, **{name: fields[name][chosen] for name in per_row}, **changes})


def index_rows(files: list[Path], folder: Path | None) -> Rows:
    """Indexes the rows of files without checking them; the counts of pictures and characters are 0."""
    if not files or len(files) > MAX_FILES:
        raise ValueError(f'{len(files)} data files: give from 1 to {MAX_FILES}')
    for path in files:
        if not path.exists():
            raise FileNotFoundError(f'no data file {str(path)!r}')
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f'no folder of pictures {str(folder)!r}')
    locations = [np.fromiter(locate_rows(path), np.dtype((np.int64, 3))) for path in files]
    for path, located in zip(files, locations, strict=True):
        if not len(located):
            raise ValueError(f'{path} has no rows')
    start, size, line = np.concatenate(locations).T
    largest = np.iinfo(np.int32).max
    if line.max() > largest:
        raise ValueError(f'a data file has more than {largest:,} lines: split it')
    counts = [len(located) for located in locations]
    return Rows(
        tuple(files),
        tuple(map(is_list, files)),
        folder,
        np.repeat(np.arange(len(files), dtype=np.uint8), counts),
        start.copy(),
        np.minimum(size, largest).astype(np.int32),
        line.astype(np.int32),
        np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        np.zeros(len(start), np.uint8),
        np.zeros(len(start), np.int32),
    )
