"""The numbers of a run: a JSON object a step in a file, and TensorBoard where it is installed."""

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vipllava_jax.folders import write_text


class Metrics:
    """`metrics.jsonl` in a folder, cut back to the steps that a run has behind it when it goes on."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / 'metrics.jsonl'
        self.records = _until(self.path, step)
        lines = ''.join(json.dumps(record) + '\n' for record in self.records)
        write_text(self.path, lines)
        self._file = self.path.open('a', encoding='utf-8', buffering=1)
        self._board = board(folder / 'tensorboard', step)

    def write(self, record: Mapping[str, Any]) -> None:
        """One step's record: numbers, with its `step`; TensorBoard is told too."""
        self._file.write(json.dumps(record) + '\n')
        if self._board:
            self._board.write(record)

    def sync(self) -> None:
        """Returns when all that was written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _until(path: Path, step: int) -> list[dict[str, Any]]:
    """The records of a file up to a step; a line that was cut off when the process ended comes after it."""
    records = []
    for line in path.read_text('utf-8', 'replace').splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record['step'] > step:
            break
        records.append(record)
    return records


class Board:
    """Files of events for TensorBoard, which forgets what it was told of the steps that are told anew."""

    def __init__(self, folder: Path, step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(folder))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, record: Mapping[str, Any]) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name != 'step'
        ]
        told = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=record['step'], summary=told))

    def close(self) -> None:
        self._writer.close()


def board(folder: Path, step: int) -> Board | None:
    """What tells TensorBoard of the steps after one; None where it is not installed."""
    return Board(folder, step) if importlib.util.find_spec('tensorboard') else None
