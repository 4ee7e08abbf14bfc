"""Rows of training data: JSON and JSONL files, checked before any long work, read one row at a time."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.data import values
from vipllava_jax.data.conversations import Limit
from vipllava_jax.data.files import ROW, is_list, spans
from vipllava_jax.data.marking import Prompted, inside_picture
from vipllava_jax.data.region_prompts import compose
from vipllava_jax.data.workers import ordered
from vipllava_jax.files import check_regular
from vipllava_jax.inputs.images import image_size
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.messages import brief, one_line, printable

MOST_FILES = 255
MOST_PICTURES = 255  # per row
# the errors of code that reads fields of an unexpected form
FORM = (TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError)
SHOWN = 20  # broken rows that an error lists
PART = 512  # rows checked at a time


class BrokenRow(ValueError):
    """A row that cannot be used; one printable line says where it is and what is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Row(NamedTuple):
    """One example in a file, as read."""

    name: str  # its id, or its location
    where: str  # 'mix.json, row 12 (line 340)'
    fields: dict[str, Any]
    images: tuple[Path, ...]
    folder: Path  # of the pictures and of other files that the row names


def row(fields: dict[str, Any], where: str, folder: Path) -> Row:
    """The fields of an example -> the row; BrokenRow if its id or the paths of its pictures are invalid."""
    named = fields.get('image')
    names = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(name, str) and name for name in names):
        raise BrokenRow(f'{where}: "image" is {brief(named)}, expected a path, or a list of paths')
    if len(names) > MOST_PICTURES:
        raise BrokenRow(f'{where}: "image" holds {len(names)} pictures, expected at most {MOST_PICTURES}')
    if not isinstance(fields.get('id'), str | int | float | None):
        raise BrokenRow(f'{where}: "id" is {brief(fields["id"])}, expected a text or a number')
    name = where if fields.get('id') is None else str(fields['id'])
    return Row(name, where, fields, tuple(folder / name for name in names), folder)


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    """Parses the JSON object of a row; BrokenRow if it is not one, or holds an invalid value."""
    try:
        fields = json.loads(text.decode())
    except RecursionError:
        raise BrokenRow(f'{where}: nested too deeply') from None
    except ValueError as error:
        raise BrokenRow(f'{where}: not JSON ({error})') from None
    if not isinstance(fields, dict):
        raise BrokenRow(f'{where}: expected a JSON object, found {type(fields).__name__}')
    if not values.parsed_is_safe(text):
        check_values(fields, where)
    return fields


def check_values(fields: dict[str, Any], where: str) -> None:
    """Raises BrokenRow for an invalid value; see `values.check`."""
    try:
        values.check(fields)
    except ValueError as error:
        raise BrokenRow(f'{where}: {error}') from None


@dataclass(frozen=True, eq=False)
class Rows:
    """An index of the rows of several files, 26 bytes per row; `rows[i]` reads one from its file."""

    files: tuple[Path, ...]
    lists: tuple[bool, ...]  # which of the files are one JSON list
    folder: Path | None  # of the pictures; None: the folder of the row's file
    file: np.ndarray  # N uint8, the number of its file
    start: np.ndarray  # N int64, its first byte
    size: np.ndarray  # N int32, in bytes
    line: np.ndarray  # N int32, of its first byte, from 1
    number: np.ndarray  # N int32, in its file, from 0
    images: np.ndarray  # N uint8, how many pictures it has
    letters: np.ndarray  # N int32, characters of its conversation, a measure of its length
    broken: tuple[str, ...] = ()  # the errors of the first rows that were left out
    left_out: int = 0
    cut: int = 0  # rows longer than max_length
    unlearnt: int = 0  # of those, rows without any answer left

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, i: int) -> Row:
        """Reads a row; raises BrokenRow if it is invalid."""
        path, where = self.files[self.file[i]], self.where(i)
        if self.size[i] > ROW:
            raise BrokenRow(f'{where}: {self.size[i]:,} bytes or more, expected at most {ROW:,}')
        with path.open('rb') as file:
            file.seek(self.start[i])
            text = file.read(self.size[i])
        fields = _parsed(text, where)
        return row(fields, where, path.parent if self.folder is None else self.folder)

    def where(self, i: int) -> str:
        """The file and line of a row, for messages."""
        file, line = self.file[i], self.line[i]
        row = f'row {self.number[i]} (line {line})' if self.lists[file] else f'line {line}'
        return f'{self.files[file]}, {row}'

    def take(self, kept: np.ndarray, **changes: Any) -> 'Rows':
        """A subset of the rows, by a mask or indices N."""
        per_row = ('file', 'start', 'size', 'line', 'number', 'images', 'letters')
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Rows(**{**own, **{name: own[name][kept] for name in per_row}, **changes})


def read(
    files: Sequence[str | Path],
    folder: str | Path | None = None,
    *,
    skip_broken: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    limit: Limit | None = None,
) -> Rows:
    """Indexes and checks the rows of files, each a JSON list or JSONL; `folder` is that of the pictures.

    All broken rows are counted and the first are listed, in a ValueError, or with `skip_broken` in the
    result, which then leaves them out. Everything is checked except that each picture can be decoded.
    `progress` is called with the number of rows done and the total. With `limit`, rows that will be cut are
    counted, with the marks and wording of evaluation, whose length may differ slightly from training.
    """
    rows = found([Path(file) for file in files], None if folder is None else Path(folder))
    parts = [range(start, min(start + PART, len(rows))) for start in range(0, len(rows), PART)]
    broken: dict[int, str] = {}
    cut = unlearnt = 0
    for part, found_in in zip(parts, ordered(_Check(rows, limit), parts, workers), strict=True):
        images, letters, fits, problems = found_in
        rows.images[part.start : part.stop], rows.letters[part.start : part.stop] = images, letters
        cut, unlearnt = cut + fits[0], unlearnt + fits[1]
        broken |= problems
        if progress:
            progress(part.stop, len(rows))
    shown = checked([*broken.values()], len(rows), skip_broken)
    kept = np.delete(np.arange(len(rows)), [*broken])
    return rows.take(kept, broken=shown, left_out=len(broken), cut=cut, unlearnt=unlearnt)


def checked(broken: Sequence[str], count: int, skip: bool, what: str = 'rows') -> tuple[str, ...]:
    """The errors of the first broken rows; ValueError if they may not be skipped, or all are broken."""
    shown = tuple(broken[:SHOWN])
    if broken and (not skip or len(broken) == count):
        more = '' if len(shown) == len(broken) else f', the first {len(shown)} of them'
        raise ValueError(
            '\n'.join([f'{len(broken)} of {count} {what} are broken{more}:', *shown])
            + '\nfix them, or let broken rows be skipped'
        )
    return shown


@dataclass(frozen=True)
class _Check:
    """A range of rows -> the pictures and letters of each, how many are cut, and the errors by index."""

    rows: Rows
    limit: Limit | None

    def __call__(self, part: range) -> tuple[np.ndarray, np.ndarray, tuple[int, int], dict[int, str]]:
        images, letters = np.zeros(len(part), np.uint8), np.zeros(len(part), np.int32)
        cut = unlearnt = 0
        broken = {}
        for n, i in enumerate(part):
            try:
                row = self.rows[i]
                turns = composed(row, _evaluated).turns
                fits = _fits(self.limit, row, turns)
            except BrokenRow as error:
                broken[i] = str(error)
                continue
            images[n], letters[n] = len(row.images), sum(len(turn.text) for turn in turns)
            cut, unlearnt = cut + fits[0], unlearnt + fits[1]
        return images, letters, (cut, unlearnt), broken


def _fits(limit: Limit | None, row: Row, turns: Sequence[Turn]) -> tuple[bool, bool]:
    """Whether a row will be cut, and whether no answer is left; BrokenRow if its pictures do not fit."""
    try:
        return limit(turns, len(row.images)) if limit else (False, False)
    except ValueError as error:
        raise BrokenRow(f'{row.where}: {error}') from None


def composed(row: Row, make: Callable[[Row], Prompted]) -> Prompted:
    """The result of `make` for a row; BrokenRow if it fails, or a picture or a mark is invalid."""
    try:
        for path in row.images:
            if not path.exists():
                raise ValueError(f'no picture at {str(path)!r}')
            check_regular(path)
        prompted = make(row)
        for path, marks in zip(row.images, prompted.marks, strict=True):
            size = image_size(path) if marks else (0, 0)
            for mark in marks:
                inside_picture(mark, size)
    except (ValueError, OSError) as error:
        raise BrokenRow(f'{row.where}: {error}') from None
    except FORM as error:
        raise BrokenRow(f'{row.where}: a field has the wrong form ({one_line(error)})') from None
    return prompted


def _evaluated(row: Row) -> Prompted:
    return compose(row.fields, len(row.images), row.folder, None)


def found(files: list[Path], folder: Path | None) -> Rows:
    """Indexes the rows of files without checking them."""
    if not files or len(files) > MOST_FILES:
        raise ValueError(f'{len(files)} data files: give from 1 to {MOST_FILES}')
    for path in files:
        if not path.exists():
            raise FileNotFoundError(f'no data file {str(path)!r}')
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f'no folder of pictures {str(folder)!r}')
    all_spans = [np.fromiter(spans(path), np.dtype((np.int64, 3))) for path in files]
    for path, found in zip(files, all_spans, strict=True):
        if not len(found):
            raise ValueError(f'{path} has no rows')
    start, size, line = np.concatenate(all_spans).T
    most = np.iinfo(np.int32).max
    if line.max() > most:
        raise ValueError(f'a data file has more than {most:,} lines: split it')
    counts = [len(found) for found in all_spans]
    return Rows(
        tuple(files),
        tuple(map(is_list, files)),
        folder,
        np.repeat(np.arange(len(files), dtype=np.uint8), counts),
        start.copy(),
        np.minimum(size, most).astype(np.int32),
        line.astype(np.int32),
        np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        np.zeros(len(start), np.uint8),
        np.zeros(len(start), np.int32),
    )
