"""The numbers of a run: a JSON object a step in a file, and TensorBoard where it is installed."""

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Metrics:
    """`metrics.jsonl` in a folder, cut back to the steps that a run has behind it when it goes on."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / 'metrics.jsonl'
        self.records = _until(self.path, step)
        lines = ''.join(json.dumps(record) + '\n' for record in self.records)
        fresh = self.path.with_name(f'.{self.path.name}.new')
        fresh.write_text(lines, 'utf-8')
        fresh.replace(self.path)
        self._file = self.path.open('a', encoding='utf-8', buffering=1)
        self._board = board(folder / 'tensorboard', step)

    def write(self, record: Mapping[str, Any]) -> None:
        """One step's record, with its `step`; numbers go to TensorBoard too."""
        self._file.write(json.dumps(record) + '\n')
        if self._board:
            for name, value in record.items():
                if name != 'step' and isinstance(value, (int, float)):
                    self._board(name, value, record['step'])

    def sync(self) -> None:
        """Returns when all that was written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


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


def board(folder: Path, step: int) -> Any:
    """What tells TensorBoard (name, value, step), by whichever package is installed, or None."""
    found = importlib.util.find_spec
    if found('tensorboardX'):
        from tensorboardX import SummaryWriter
    elif found('tensorboard') and found('torch'):
        from torch.utils.tensorboard import SummaryWriter
    elif found('tensorflow'):
        import tensorflow as tf

        writer = tf.summary.create_file_writer(str(folder))

        def tell(name: str, value: float, at: int) -> None:
            with writer.as_default():
                tf.summary.scalar(name, value, at)

        return tell
    else:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1).add_scalar
