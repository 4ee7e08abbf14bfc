"""The metrics of a run: a JSON object per step in a file, and TensorBoard if it is installed."""

import importlib.util
import io
import itertools
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vipllava_jax.files import check_regular, naming, parse_record, write_text
from vipllava_jax.messages import brief

FILE_NUMBERS = itertools.count()  # numbers the files that this process writes for TensorBoard


class MetricsLog:
    """`metrics.jsonl` in a folder; a resumed run drops the records after its checkpoint."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / 'metrics.jsonl'
        self.records = _read_records(self.path, step)
        lines = ''.join(json.dumps(record) + '\n' for record in self.records)
        write_text(self.path, lines)
        self._file = self.path.open('ab', buffering=0)
        self._tensorboard = open_tensorboard(folder / 'tensorboard', step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one step's numbers, among them `step`, to the file and to TensorBoard."""
        append_bytes(self.path, self._file, (json.dumps(record) + '\n').encode())
        if self._tensorboard:
            self._tensorboard.write(record)

    def sync(self) -> None:
        """Waits until everything written is on the disk."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


def append_bytes(path: Path, file: Any, data: bytes) -> None:
    """Appends to an unbuffered file: closing a buffered one after an error would write again."""
    remaining = memoryview(data)
    with naming(path):
        while remaining:
            remaining = remaining[file.write(remaining) :]


def _read_records(path: Path, step: int) -> list[dict[str, Any]]:
    """The records of a file up to a step.

    Later lines are ignored, because the last one may be incomplete if the process was killed. ValueError
    names an earlier line that is damaged.
    """
    records: list[dict[str, Any]] = []
    if not step or not path.exists():
        return records
    check_regular(path)
    with path.open('rb') as file:
        for number, line in enumerate(file, 1):
            if records and records[-1]['step'] >= step:
                break
            record = _parse_line(f'{path}, line {number}', line)
            if record['step'] > step:
                break
            records.append(record)
    return records


def _parse_line(where: str, line: bytes) -> dict[str, Any]:
    """The record in a line; ValueError if it is not as `MetricsLog.write` writes it."""
    advice = 'restore the file, or remove it to resume without its records'
    record = parse_record(line, where, advice)
    if type(record.get('step')) is not int or record['step'] < 1:
        found = f'"step" is {brief(record.get("step"))}, expected the number of a step'
        raise ValueError(f'{where} is damaged: {found}: {advice}')
    for name, value in record.items():
        if type(value) not in (int, float) or (type(value) is int and value.bit_length() > 1000):
            raise ValueError(f'{where} is damaged: "{name}" is {brief(value)}, expected a number: {advice}')
    return record


class TensorBoardFile:
    """A file of events for TensorBoard, which drops earlier events of the steps that are written again.

    TensorBoard's own writer is a thread, which prints a traceback when the disk is full.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary, self._writer = event_pb2.Event, summary_pb2.Summary, RecordWriter
        place = f'{socket.gethostname()}.{os.getpid()}.{next(FILE_NUMBERS)}'
        name = f'events.out.tfevents.{time.time():010.0f}.{place}'
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        self._file = self.path.open('ab', buffering=0)
        self._add(file_version='brain.Event:2')
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(step=step + 1, session_log=start)

    def write(self, record: Mapping[str, Any]) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name != 'step'
        ]
        self._add(step=record['step'], summary=self._summary(value=values))

    def _add(self, **fields: Any) -> None:
        data = io.BytesIO()
        self._writer(data).write(self._event(wall_time=time.time(), **fields).SerializeToString())
        append_bytes(self.path, self._file, data.getvalue())

    def close(self) -> None:
        self._file.close()


def open_tensorboard(folder: Path, step: int) -> TensorBoardFile | None:
    """A writer for TensorBoard of the steps after `step`; None if TensorBoard is not installed."""
    return TensorBoardFile(folder, step) if importlib.util.find_spec('tensorboard') else None
