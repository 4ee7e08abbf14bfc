"""Rows of training data: JSON and JSONL files, checked before any long work, read one row at a time."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.files import check_regular
from vipllava_jax.inputs.images import measure
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.messages import brief, one_line, printable
from vipllava_jax.training import values
from vipllava_jax.training.conversations import Limit
from vipllava_jax.training.files import ROW, is_list, spans
from vipllava_jax.training.marking import Prompted, settled
from vipllava_jax.training.region_prompts import compose
from vipllava_jax.training.workers import ordered

FILES = 255  # at most
PICTURES = 255  # of a row, at most
# what goes wrong in fields of another form than expected
FORM = (TypeError, KeyError, IndexError, AttributeError, ArithmeticError, RecursionError)
SHOWN = 20  # broken rows that an error tells of
PART = 512  # rows checked at a time


class BrokenRow(ValueError):
    """A row of which no example can be made; one printable line says where it is and what is wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Row(NamedTuple):
    """What a file says of one example."""

    name: str  # its id, or where it is
    where: str  # 'mix.json, row 12 (line 340)'
    fields: dict[str, Any]
    images: tuple[Path, ...]
    folder: Path  # of the pictures, and of what else the row names


def row(fields: dict[str, Any], where: str, folder: Path) -> Row:
    """What a file says of an example -> the row; BrokenRow if its id or pictures are not named by texts."""
    named = fields.get('image')
    names = named if isinstance(named, list) else [] if named is None else [named]
    if not all(isinstance(name, str) and name for name in names):
        raise BrokenRow(f'{where}: "image" is {brief(named)}, expected a path, or a list of paths')
    if len(names) > PICTURES:
        raise BrokenRow(f'{where}: "image" holds {len(names)} pictures, expected at most {PICTURES}')
    if not isinstance(fields.get('id'), str | int | float | None):
        raise BrokenRow(f'{where}: "id" is {brief(fields["id"])}, expected a text or a number')
    name = where if fields.get('id') is None else str(fields['id'])
    return Row(name, where, fields, tuple(folder / name for name in names), folder)


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    """The object that a row's bytes say; BrokenRow if they say none, or one that holds what no row may."""
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
    """BrokenRow for a row that holds a value that no row may; see `values`."""
    try:
        values.check(fields)
    except ValueError as error:
        raise BrokenRow(f'{where}: {error}') from None


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of several files, which stay there: `rows[i]` reads one; 26 bytes of memory each."""

    files: tuple[Path, ...]
    lists: tuple[bool, ...]  # which of the files are one JSON list
    folder: Path | None  # of the pictures; that of the row's own file by default
    file: np.ndarray  # N uint8, the number of its file
    start: np.ndarray  # N int64, its first byte
    size: np.ndarray  # N int32, in bytes
    line: np.ndarray  # N int32, of its first byte, from 1
    number: np.ndarray  # N int32, in its file, from 0
    images: np.ndarray  # N uint8, how many pictures it has
    letters: np.ndarray  # N int32, of its conversation, as a measure of its length
    broken: tuple[str, ...] = ()  # what is wrong with the first of those left out
    left_out: int = 0
    cut: int = 0  # rows longer than may be
    unlearnt: int = 0  # of those, rows of which no answer is left

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, i: int) -> Row:
        """BrokenRow if it is no object, or its pictures are not named by texts."""
        path, where = self.files[self.file[i]], self.where(i)
        if self.size[i] > ROW:
            raise BrokenRow(f'{where}: {self.size[i]:,} bytes or more, expected at most {ROW:,}')
        with path.open('rb') as file:
            file.seek(self.start[i])
            text = file.read(self.size[i])
        fields = _parsed(text, where)
        return row(fields, where, path.parent if self.folder is None else self.folder)

    def where(self, i: int) -> str:
        """Where a row is, for a message: a file and a line."""
        file, line = self.file[i], self.line[i]
        row = f'row {self.number[i]} (line {line})' if self.lists[file] else f'line {line}'
        return f'{self.files[file]}, {row}'

    def take(self, kept: np.ndarray, **changes: Any) -> 'Rows':
        """Some of the rows, by a mask or indices N."""
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
    """Files, each a JSON list or JSONL, and the folder of their pictures -> their rows, each checked.

    Every broken row is counted and the first are told, in one ValueError, or with `skip_broken` in the Rows,
    which then do without them. Checked is all but that each picture can be decoded; `progress` is told the
    rows done and those in all. With `limit`, rows that are cut are counted: as they are in evaluation, from
    which marks and words that vary may differ by a few tokens.
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
    told = checked([*broken.values()], len(rows), skip_broken)
    kept = np.delete(np.arange(len(rows)), [*broken])
    return rows.take(kept, broken=told, left_out=len(broken), cut=cut, unlearnt=unlearnt)


def checked(broken: Sequence[str], count: int, skip: bool, what: str = 'rows') -> tuple[str, ...]:
    """What is wrong with the first of the broken ones of `count` rows; ValueError unless they may be skipped.

    It also raises if all of them are broken: then nothing is left to work with.
    """
    told = tuple(broken[:SHOWN])
    if broken and (not skip or len(broken) == count):
        more = '' if len(told) == len(broken) else f', the first {len(told)} of them'
        raise ValueError(
            '\n'.join([f'{len(broken)} of {count} {what} are broken{more}:', *told])
            + '\nmend them, or let broken rows be skipped'
        )
    return told


@dataclass(frozen=True)
class _Check:
    """A range of rows -> each one's pictures and letters, how many are cut, what is wrong with which."""

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
    """Whether a row is cut, and has nothing left to be learnt; BrokenRow if its pictures do not fit."""
    try:
        return limit(turns, len(row.images)) if limit else (False, False)
    except ValueError as error:
        raise BrokenRow(f'{row.where}: {error}') from None


def composed(row: Row, make: Callable[[Row], Prompted]) -> Prompted:
    """What `make` makes of a row; BrokenRow if it cannot, or a picture is not there, or a mark not on it."""
    try:
        for path in row.images:
            if not path.exists():
                raise ValueError(f'no picture at {str(path)!r}')
            check_regular(path)
        prompted = make(row)
        for path, marks in zip(row.images, prompted.marks, strict=True):
            size = measure(path) if marks else (0, 0)
            for mark in marks:
                settled(mark, size)
    except (ValueError, OSError) as error:
        raise BrokenRow(f'{row.where}: {error}') from None
    except FORM as error:
        raise BrokenRow(f'{row.where}: a field has the wrong form ({one_line(error)})') from None
    return prompted


def _evaluated(row: Row) -> Prompted:
    return compose(row.fields, len(row.images), row.folder, None)


def found(files: list[Path], folder: Path | None) -> Rows:
    """Where each row begins and ends, not yet checked."""
    if not files or len(files) > FILES:
        raise ValueError(f'{len(files)} data files: give from 1 to {FILES}')
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
