"""Checks all rows of data files before any long work, and counts those that max_length truncates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vipllava_jax.data.conversations import LengthLimit
from vipllava_jax.data.marking import MarkedConversation, clamp_mark
from vipllava_jax.data.region_prompts import make_conversation
from vipllava_jax.data.rows import BrokenRow, Row, Rows, index_rows, raising_broken_row
from vipllava_jax.data.workers import map_in_order
from vipllava_jax.files import check_regular
from vipllava_jax.inputs.images import image_size

LISTED = 20  # broken rows that an error lists
CHUNK = 512  # rows checked at a time


def read_rows(
    files: Sequence[str | Path],
    folder: str | Path | None = None,
    *,
    skip_broken: bool = False,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
    limit: LengthLimit | None = None,
) -> Rows:
    """Indexes and checks the rows of files, each a JSON list or JSONL; `folder` is that of the pictures.

    All broken rows are counted and the first are listed, in a ValueError, or with `skip_broken` in the
    result, which then leaves them out. Everything is checked except that each picture can be decoded.
    `progress` is called with the number of rows done and the total. With `limit`, truncated rows are counted,
    with the marks and wording of evaluation, whose length may differ slightly from training.
    """
    rows = index_rows([Path(file) for file in files], None if folder is None else Path(folder))
    chunks = [range(start, min(start + CHUNK, len(rows))) for start in range(0, len(rows), CHUNK)]
    errors: dict[int, str] = {}
    truncated = without_answer = 0
    checks = map_in_order(_ChunkCheck(rows, limit), chunks, workers)
    for chunk, checked in zip(chunks, checks, strict=True):
        rows.image_counts[chunk.start : chunk.stop] = checked.image_counts
        rows.text_lengths[chunk.start : chunk.stop] = checked.text_lengths
        truncated, without_answer = truncated + checked.truncated, without_answer + checked.without_answer
        errors |= checked.errors
        if progress:
            progress(chunk.stop, len(rows))
    return rows.select(
        np.delete(np.arange(len(rows)), [*errors]),
        errors=raise_unless_skipped([*errors.values()], len(rows), skip_broken),
        skipped=len(errors),
        truncated=truncated,
        without_answer=without_answer,
    )


def raise_unless_skipped(
    errors: Sequence[str], count: int, skip_broken: bool, what: str = 'rows'
) -> tuple[str, ...]:
    """The first errors of `count` rows; ValueError with them if broken rows are not skipped, or all are."""
    listed = tuple(errors[:LISTED])
    if errors and (not skip_broken or len(errors) == count):
        more = '' if len(listed) == len(errors) else f', the first {len(listed)} of them'
        advice = 'fix them' + (
            '' if len(errors) == count else ', or leave them out with skip_broken (--skip-broken)'
        )
        raise ValueError(
            '\n'.join([f'{len(errors)} of {count} {what} are broken{more}:', *listed]) + f'\n{advice}'
        )
    return listed


class _Checked(NamedTuple):
    """The result of checking n rows."""

    image_counts: np.ndarray  # n uint8
    text_lengths: np.ndarray  # n int32
    truncated: int
    without_answer: int
    errors: dict[int, str]  # by the index of the row


@dataclass(frozen=True)
class _ChunkCheck:
    """Checks a range of rows; can be sent to another process."""

    rows: Rows
    limit: LengthLimit | None

    def __call__(self, chunk: range) -> _Checked:
        image_counts, text_lengths = np.zeros(len(chunk), np.uint8), np.zeros(len(chunk), np.int32)
        truncated = without_answer = 0
        errors = {}
        for n, i in enumerate(chunk):
            try:
                row = self.rows[i]
                turns = make_checked_conversation(row, _evaluation_conversation).turns
                is_truncated = has_no_answer = False
                if self.limit:
                    with raising_broken_row(row.where):
                        is_truncated, has_no_answer = self.limit(turns, len(row.images))
            except BrokenRow as error:
                errors[i] = str(error)
                continue
            image_counts[n], text_lengths[n] = len(row.images), sum(len(turn.text) for turn in turns)
            truncated, without_answer = truncated + is_truncated, without_answer + has_no_answer
        return _Checked(image_counts, text_lengths, truncated, without_answer, errors)


def make_checked_conversation(row: Row, make: Callable[[Row], MarkedConversation]) -> MarkedConversation:
    """The result of `make` for a row; BrokenRow if it fails, or a picture or a mark is invalid."""
    with raising_broken_row(row.where):
        for path in row.images:
            if not path.exists():
                raise ValueError(f'no picture at {str(path)!r}')
            check_regular(path)
        conversation = make(row)
        for path, marks in zip(row.images, conversation.marks, strict=True):
            size = image_size(path) if marks else (0, 0)
            for mark in marks:
                clamp_mark(mark, size)
    return conversation


def _evaluation_conversation(row: Row) -> MarkedConversation:
    return make_conversation(row.fields, len(row.images), row.folder, None)
