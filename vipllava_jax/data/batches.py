"""Batches of rows, in an order given by the seed and the step, prepared ahead by worker processes."""

import functools
import itertools
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vipllava_jax.data.conversations import IGNORE, Example, check_trainable, encode_conversation
from vipllava_jax.data.examples import Examples
from vipllava_jax.data.marking import open_marked
from vipllava_jax.data.order import epoch_order, sample_seed
from vipllava_jax.data.region_prompts import make_conversation
from vipllava_jax.data.rows import BrokenRow, Row, Rows, raising_broken_row
from vipllava_jax.data.workers import map_in_order
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.inputs.padding import pad_ids, pad_images, round_up
from vipllava_jax.inputs.pixels import Fit, check_fit, marks_cut_off, uint8_pixels
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE
from vipllava_jax.messages import brief

RANGES = (  # fields of BatchSettings with their smallest and largest values
    ('batch_size', 1, 2**16),
    ('max_length', 1, 2**31 - 1),
    ('pad_to_multiple_of', 1, 2**31 - 1),
    ('seed', 0, 2**63 - 1),
)
MAX_ATTEMPTS = 100  # rows that are tried in place of a broken one

Note = tuple[str, str]  # (subject, message); only one message per subject is reported


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How rows become batches; ValueError for a value out of range."""

    batch_size: int
    seed: int | None = 0  # None: for evaluation, in the order of the file and without random marks
    template: str = DEFAULT_TEMPLATE
    fit: Fit | None = None
    max_length: int = 2048  # tokens; longer conversations are truncated
    group_by_length: bool = True  # the rows of a batch have about the same length: T and I take few values
    pad_to_multiple_of: int = 128  # the length T of a batch is a multiple of this
    skip_broken: bool = False  # the next good row takes the place of a broken one
    workers: int = 0  # processes that prepare batches; 0: they are prepared in this process

    def __post_init__(self) -> None:
        check_trainable(self.template)
        check_fit(self.fit)
        for name, smallest, largest in RANGES:
            value = getattr(self, name)
            if value is not None and not smallest <= value <= largest:
                raise ValueError(f'{name} is {brief(value)}: give {smallest} to {largest:,}')


class TrainingBatch(NamedTuple):
    """The arrays of a training step, and the names of their rows."""

    examples: Examples
    names: tuple[str, ...]  # for messages


class RowWithoutAnswer(BrokenRow):
    """A row whose answers are all beyond max_length; it is not broken otherwise."""


class Sample(NamedTuple):
    """A row, ready to become part of a batch."""

    name: str
    example: Example
    images: list[np.ndarray]  # hw3 uint8, with the marks drawn on them


class Task(NamedTuple):
    """A batch to make."""

    epoch: int
    rows: np.ndarray  # B, the indices of its rows
    repeated: int  # the number of rows at the end that only fill up the batch and have no targets


@dataclass(frozen=True)
class BatchMaker:
    """A Task -> its batch and notes about skipped rows; can be sent to another process."""

    rows: Rows
    processor: Processor
    settings: BatchSettings

    def __call__(self, task: Task) -> tuple[TrainingBatch, list[Note]]:
        notes: list[Note] = []
        samples = [self._find_sample(int(i), task.epoch, notes) for i in task.rows]
        names, examples, images = zip(*samples, strict=True)
        longest = max(len(example.tokens) for example in examples)
        T = round_up(longest, self.settings.pad_to_multiple_of)
        tokens = pad_ids([example.tokens for example in examples], T, self.processor.tokenizer.pad)
        targets = pad_ids([example.targets for example in examples], T, IGNORE)
        targets[len(samples) - task.repeated :] = IGNORE
        padded_images, counts = pad_images(images, self.processor.image_settings.side, np.uint8)
        return TrainingBatch(Examples(tokens, targets, padded_images, counts), names), notes

    def _find_sample(self, i: int, epoch: int, notes: list[Note]) -> Sample:
        """The sample of a row or, if that is broken or has no answer left, of the next good one."""
        for n in range(MAX_ATTEMPTS):
            try:
                return self._make_sample(self.rows[(i + n) % len(self.rows)], epoch, notes)
            except BrokenRow as error:
                if not (self.settings.skip_broken or isinstance(error, RowWithoutAnswer)):
                    raise
                notes.append((str(error), f'skipped: {error}'))
        raise BrokenRow(f'{self.rows.where(i)}: this row and the {MAX_ATTEMPTS - 1} after it are broken')

    def _make_sample(self, row: Row, epoch: int, notes: list[Note]) -> Sample:
        settings = self.settings
        rng = None
        if settings.seed is not None:
            rng = np.random.default_rng(sample_seed(settings.seed, epoch, row.name))
        try:
            with raising_broken_row(row.where):
                count = len(row.images)
                turns, marks = make_conversation(row.fields, count, row.folder, rng)
                example = encode_conversation(
                    turns, count, self.processor, settings.template, settings.max_length
                )
                if (example.targets == IGNORE).all():
                    raise RowWithoutAnswer(
                        f'{row.where}: its question alone fills max_length {settings.max_length}'
                    )
                return Sample(row.name, example, self._load_images(row, marks, rng, notes))
        except BrokenRow:
            raise
        except Exception as error:
            raise RuntimeError(f'{row.where}: {error!r}') from error

    def _load_images(
        self, row: Row, marks: Sequence[Sequence[Mark]], rng: np.random.Generator | None, notes: list[Note]
    ) -> list[np.ndarray]:
        """The pictures hw3 of a row, with its marks; notes a mark that is cropped."""
        images = []
        for path, row_marks in zip(row.images, marks, strict=True):
            seed = int(rng.integers(1 << 32)) if row_marks and rng is not None else None
            image = open_marked(path, row_marks, seed)
            for mark in marks_cut_off(image, self.processor.image_settings, self.settings.fit):
                message = f"the crop cuts off the mark {mark}; fit 'pad' keeps whole pictures"
                notes.append(('crop', f'{row.where}: {message}'))
            images.append(uint8_pixels(image, self.processor.image_settings, self.settings.fit))
        return images


@dataclass(frozen=True)
class Batches:
    """`at(step)` is the batch of a step, always the same; `iterate` prepares the next ones in parallel.

    Each epoch has every row once, in another order and with other marks; its last batch is filled up with
    its first rows. With seed None, the rows that fill up the last batch have no targets. `report` is called
    once with each problem of a row that does not stop the run.
    """

    rows: Rows
    processor: Processor
    settings: BatchSettings
    report: Callable[[str], None] = warnings.warn

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
        return BatchMaker(self.rows, self.processor, self.settings)

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
