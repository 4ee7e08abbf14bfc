"""Puts the part files of a batch together, in the order of the parts or in that of the rows."""

import contextlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from vipllava_jax.batch_files.ids import HASH, IdSet, id_hash
from vipllava_jax.batch_files.lines import is_error, line_id
from vipllava_jax.batch_files.names import Names
from vipllava_jax.batch_files.output import check_output_name, is_complete, read_lines
from vipllava_jax.batch_files.run_file import Run, check_same, read_run, write_run
from vipllava_jax.batch_files.sources import Source
from vipllava_jax.files import lock_for_appending, replacing
from vipllava_jax.messages import brief, listed
from vipllava_jax.row_shards import existing_parts, shards

SHARD, MERGED = 'shard', 'merged'  # the settings that say which part a file is, and of how many it is made
SHOWN = 6  # the most parts that a message lists


def merge(output: Path, source: Source | None = None) -> Run:
    """Writes the lines of all parts of an output to it; those of a source of rows are in their order.

    Raises ValueError if a part is missing, incomplete or of another batch, if the source has other rows, and
    if there is a file with another content in place of the output. It is replaced completely or not at all.
    """
    check_output_name(output)
    parts, settings = _check_parts(output)
    if source and source.fingerprint() != settings.get('data'):
        raise ValueError(f'the rows that give the order are not those of {output}: give the same input')
    _check_replaceable(output, settings)
    with contextlib.ExitStack() as stack:
        files: list[IO[bytes]] = [stack.enter_context(path.open('rb')) for path in parts]
        for path, file in zip(parts, files, strict=True):
            lock_for_appending(path, file.fileno())
        counts = {'answers': 0, 'errors': 0, 'bytes': 0}
        with replacing(output) as fresh, fresh.open('wb') as target:
            lines = _in_order(parts, files, source) if source else _one_after_another(parts, files)
            for line, is_error in lines:
                target.write(line)
                counts['errors' if is_error else 'answers'] += 1
                counts['bytes'] += len(line)
            target.flush()
            run = Run({**settings, MERGED: len(parts)}, counts)
            write_run(output, run)
    return run


def _check_parts(output: Path) -> tuple[list[Path], dict[str, Any]]:
    """The parts of an output, and their settings; ValueError unless all are complete and of one batch."""
    found = dict(existing_parts(output))
    counts = sorted({shard.count for shard in found})
    if len(counts) != 1:
        numbers = f'parts of {listed([*map(str, counts)], SHOWN)} in all' if counts else 'no parts'
        expected = f'{output.stem}.0-of-N{output.suffix} to {output.stem}.(N-1)-of-N{output.suffix}'
        raise ValueError(f'{output} has {numbers}: expected the files {expected}')
    parts = [shard.file(output) for shard in shards(counts[0])]
    runs = [read_run(path) for path in parts]
    complete = [run and is_complete(path, run.settings) for path, run in zip(parts, runs, strict=True)]
    if missing := [str(n) for n, run in enumerate(complete) if not run]:
        raise ValueError(
            f'{len(missing)} of {counts[0]} parts of {output} are missing or not complete: run part '
            f'{listed(missing, SHOWN)}, as --shard {missing[0]}/{counts[0]}'
        )
    settings = [
        {name: run.settings[name] for name in run.settings if name != SHARD} for run in complete if run
    ]
    for path, others in zip(parts, settings, strict=True):
        check_same(path, others, settings[0])
    return parts, settings[0]


def _check_replaceable(output: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError for an existing file that the parts do not stand for."""
    if not output.exists() or not output.stat().st_size:
        return
    run = read_run(output)
    if run is None or MERGED not in run.settings:
        raise ValueError(f'{output} exists, and was not made from parts: move it, or rename the parts')
    check_same(output, run.settings, settings)


def _one_after_another(parts: list[Path], files: list[IO[bytes]]) -> Iterator[tuple[bytes, bool]]:
    """All lines, and whether they are errors."""
    ids = IdSet()
    for path, file in zip(parts, files, strict=True):
        for line, record in read_lines(path, file):
            if not ids.add(line_id(record)):
                raise ValueError(f'{path} has an id that another part has, too: answer the parts again')
            yield line, is_error(record)


class Places:
    """Where the line of each id lies in the part files, in 27 bytes per line."""

    def __init__(self, parts: list[Path], files: list[IO[bytes]]):
        hashes, numbers, starts, errors = bytearray(), array('H'), array('q'), array('b')
        for number, (path, file) in enumerate(zip(parts, files, strict=True)):
            start = 0
            for line, record in read_lines(path, file):
                hashes += id_hash(line_id(record))
                numbers.append(number)
                starts.append(start)
                errors.append(is_error(record))
                start += len(line)
        unordered = np.frombuffer(hashes, HASH)
        order = np.argsort(unordered)
        self.files, self.keys = files, unordered[order]
        self.numbers, self.starts, self.errors = (np.asarray(a)[order] for a in (numbers, starts, errors))

    def line(self, id: str) -> tuple[bytes, bool] | None:
        """The line of an id, and whether it is an error; None if there is none."""
        key = id_hash(id)
        place = int(np.searchsorted(self.keys, np.bytes_(key)))
        if place == len(self.keys) or self.keys[place] != key:
            return None
        file = self.files[self.numbers[place]]
        file.seek(int(self.starts[place]))
        return file.readline(), bool(self.errors[place])


def _in_order(parts: list[Path], files: list[IO[bytes]], source: Source) -> Iterator[tuple[bytes, bool]]:
    """The lines in the order of their rows, and whether they are errors; ValueError if a row has none."""
    places, names, count = Places(parts, files), Names(), 0
    for row in source.rows():
        if row is None:
            continue
        id = names.of_text(row).id
        if (found := places.line(id)) is None:
            raise ValueError(f'no part has the row {brief(id)}: the parts were made from other rows')
        count += 1
        yield found
    if count < len(places.keys):
        raise ValueError(f'the parts have {len(places.keys)} lines for {count} rows: give the same input')
