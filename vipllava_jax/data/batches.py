"""Batches of rows, in an order given by the seed and the step, prepared ahead by worker processes."""

import functools
import itertools
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from vipllava_jax.data.batch_maker import BatchMaker, Note, Task, TrainingBatch
from vipllava_jax.data.batch_settings import BatchSettings
from vipllava_jax.data.order import epoch_order
from vipllava_jax.data.rows import Rows
from vipllava_jax.data.workers import map_in_order
from vipllava_jax.inputs.processor import Processor


@dataclass(frozen=True)
class Batches:
    """`at(step)` is the batch of a step, always the same; `iterate` prepares the next ones in parallel.

    Each epoch has every row once, in another order and with other marks; its last batch is filled up with
    its first rows. With seed None, the rows that fill up the last batch have no targets. `report` is called
    once with each problem of a row that does not stop the run.

    In a run of several processes, this process loads only the images of the rows of a batch whose positions
    are in `loaded`, and a batch has only these images. All processes must have the same rows: if broken rows
    are skipped, a row with a damaged picture is not replaced, but has no targets.
    """

    rows: Rows
    processor: Processor
    settings: BatchSettings
    report: Callable[[str], None] = warnings.warn
    loaded: tuple[int, ...] | None = None  # None: all

    def __post_init__(self) -> None:
        i = int(self.rows.image_counts.argmax())
        count, max_length = self.rows.image_counts[i], self.settings.max_length
        needed = int(count) * self.processor.patches
        if needed >= max_length:
            raise ValueError(
                f'{self.rows.where(i)}: its {count} image(s) alone are {needed} tokens: '
                f'max_length {max_length} is too short'
            )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.rows) // self.settings.batch_size)

    def at(self, step: int) -> TrainingBatch:
        """The batch of a step, counted from 0 over all epochs, prepared in this process."""
        return self._report(self._maker(self._task(step)), set())

    def iterate(self, start: int = 0, stop: int | None = None) -> Generator[TrainingBatch]:
        """Yields the batches of the steps from `start` up to `stop`; without `stop` the iterator is infinite.

        Close it, or end the process, and its workers end. BrokenRow names a row of which no example can be
        made, unless broken rows are skipped.
        """
        reported: set[str] = set()
        steps = itertools.count(start) if stop is None else range(start, stop)
        results = map_in_order(self._maker, map(self._task, steps), self.settings.workers)
        try:
            for result in results:
                yield self._report(result, reported)
        finally:
            results.close()

    @property
    def _maker(self) -> BatchMaker:
        return BatchMaker(self.rows, self.processor, self.settings, self.loaded)

    def _report(self, result: tuple[TrainingBatch, list[Note]], reported: set[str]) -> TrainingBatch:
        """Reports the notes on new subjects; returns the batch."""
        batch, notes = result
        for subject, message in notes:
            if subject not in reported:
                reported.add(subject)
                self.report(message)
        return batch

    def _task(self, step: int) -> Task:
        settings = self.settings
        epoch, n = divmod(step, self.steps)
        order = self._order(epoch)
        rows = order[n * settings.batch_size : (n + 1) * settings.batch_size]
        missing = settings.batch_size - len(rows)
        rows = np.concatenate([rows, np.resize(order, missing)])
        return Task(epoch, rows, missing if settings.seed is None else 0)

    @functools.cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def _order(self, epoch: int) -> np.ndarray:
        """Indices N of the rows in the order of an epoch; the order of the latest epoch is cached."""
        settings = self.settings
        if settings.seed is None:
            return np.arange(len(self.rows))
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = epoch_order(
                self.rows, settings.batch_size, settings.group_by_length, settings.seed, epoch
            )
        return self._orders[epoch]
