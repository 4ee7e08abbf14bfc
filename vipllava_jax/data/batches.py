"""Batches of rows, in an order given by the seed and the step, prepared ahead by worker processes."""

import functools
import itertools
import warnings
from collections.abc import Callable, Generator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np

from vipllava_jax.data import conversations, workers
from vipllava_jax.data.conversations import IGNORE, Example
from vipllava_jax.data.marking import drawn
from vipllava_jax.data.order import sample_seed, shuffled
from vipllava_jax.data.region_prompts import compose
from vipllava_jax.data.rows import FORM, BrokenRow, Row, Rows
from vipllava_jax.inputs.pixels import Fit, check_fit, marks_cut_off, uint8_pixels
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE
from vipllava_jax.messages import brief, one_line

SIZES = (  # settings with their smallest and largest values
    ('batch_size', 1, 2**16),
    ('max_length', 1, 2**31 - 1),
    ('bucket', 1, 2**31 - 1),
    ('seed', 0, 2**63 - 1),
)
TRIES = 100  # rows that are tried in place of a broken one

Note = tuple[str, str]  # (subject, message); only one message per subject is reported


class Batch(NamedTuple):
    """The arrays of a training step."""

    tokens: np.ndarray  # BT int32, padded on the right
    targets: np.ndarray  # BT int32, the id that should follow each token, or IGNORE: no loss there
    images: np.ndarray  # BIhw3 uint8, I the most images of a row; zeros where a row has fewer
    image_counts: np.ndarray  # B int32
    ids: tuple[str, ...]  # the rows' names, for messages


class CutRow(BrokenRow):
    """A row without any answer left within max_length; it is not broken otherwise."""


@dataclass(frozen=True)
class Maker:
    """Rows of an epoch -> a Batch and notes about skipped rows; can be sent to another process."""

    rows: Rows
    processor: Processor
    seed: int | None
    template: str
    fit: Fit | None
    max_length: int
    bucket: int
    skip_broken: bool

    def __call__(self, task: tuple[int, np.ndarray, int]) -> tuple[Batch, list[Note]]:
        """(epoch, indices B of rows, how many of them only fill the batch up) -> the batch, the notes."""
        epoch, indices, filling = task
        notes: list[Note] = []
        made = [self._good(int(i), epoch, notes) for i in indices]
        names, examples, pictures = zip(*made, strict=True)
        longest = max(len(example.tokens) for example in examples)
        shape = len(made), -(-longest // self.bucket) * self.bucket
        tokens = np.full(shape, self.processor.tokenizer.pad, np.int32)
        targets = np.full(shape, IGNORE, np.int32)
        counts = np.array([len(row) for row in pictures], np.int32)
        side = self.processor.image_settings.side
        images = np.zeros((len(made), counts.max(), side, side, 3), np.uint8)
        for b, (example, row) in enumerate(zip(examples, pictures, strict=True)):
            tokens[b, : len(example.tokens)] = example.tokens
            if b < len(made) - filling:
                targets[b, : len(example.targets)] = example.targets
            for i, picture in enumerate(row):
                images[b, i] = picture
        return Batch(tokens, targets, images, counts, names), notes

    def _good(self, i: int, epoch: int, notes: list[Note]) -> tuple[str, Example, list[np.ndarray]]:
        """The example of a row or, if that has no answer left or is broken, of the next good one."""
        for n in range(TRIES):
            try:
                row = self.rows[(i + n) % len(self.rows)]
                return row.name, *self.example(row, epoch, notes)
            except BrokenRow as error:
                if not (self.skip_broken or isinstance(error, CutRow)):
                    raise
                notes.append((str(error), f'skipped: {error}'))
        raise BrokenRow(f'{self.rows.where(i)}: this row and the {TRIES - 1} after it are broken')

    def example(self, row: Row, epoch: int, notes: list[Note]) -> tuple[Example, list[np.ndarray]]:
        """A row -> its ids and targets, and its pictures hw3 with the marks drawn on them."""
        rng = None if self.seed is None else np.random.default_rng(sample_seed(self.seed, epoch, row.name))
        try:
            prompted = compose(row.fields, len(row.images), row.folder, rng)
            count = len(row.images)
            example = conversations.encode(
                prompted.turns, count, self.processor, self.template, self.max_length
            )
            if (example.targets == IGNORE).all():
                raise CutRow(f'{row.where}: its question alone fills max_length {self.max_length}')
            pictures = []
            for path, marks in zip(row.images, prompted.marks, strict=True):
                seed = int(rng.integers(1 << 32)) if marks and rng is not None else None
                image = drawn(path, marks, seed)
                for mark in marks_cut_off(image, self.processor.image_settings, self.fit):
                    message = (
                        f"{row.where}: the crop cuts off the mark {mark}; fit 'pad' keeps whole pictures"
                    )
                    notes.append(('crop', message))
                pictures.append(uint8_pixels(image, self.processor.image_settings, self.fit))
        except CutRow:
            raise
        except (ValueError, OSError) as error:
            raise BrokenRow(f'{row.where}: {error}') from None
        except FORM as error:
            raise BrokenRow(f'{row.where}: a field has the wrong form ({one_line(error)})') from None
        except Exception as error:
            raise RuntimeError(f'{row.where}: {error!r}') from error
        return example, pictures


@dataclass(frozen=True)
class Batches:
    """`at(step)` is the batch of a step, always the same; `iterate` prepares the next ones in parallel.

    Each epoch has every row once, in another order and with other marks; its last batch is filled up with
    its first rows. With `group_by_length` the rows of a batch have about the same length, so that T and I
    take few values; T is a multiple of `bucket`. With seed None, for evaluation, rows are in the order of
    the file, marks are not random, and the rows that fill up the last batch have no targets. `report` is
    called once with each problem of a row that does not stop the run.
    """

    rows: Rows
    processor: Processor
    _: KW_ONLY
    batch_size: int
    seed: int | None = 0
    workers: int = 0
    template: str = DEFAULT_TEMPLATE
    fit: Fit | None = None
    max_length: int = 2048
    group_by_length: bool = True
    bucket: int = 128
    skip_broken: bool = False
    report: Callable[[str], None] = warnings.warn

    def __post_init__(self) -> None:
        conversations.check(self.template)
        check_fit(self.fit)
        for name, least, most in SIZES:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f'{name} is {brief(value)}: give {least} to {most:,}')
        needed = int(self.rows.images.max()) * self.processor.patches
        if needed >= self.max_length:
            i = int(self.rows.images.argmax())
            raise ValueError(
                f'{self.rows.where(i)}: its {self.rows.images[i]} image(s) alone are {needed} tokens: '
                f'max_length {self.max_length} is too short'
            )

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs, prepared in this process."""
        return self._reported(self._maker(self._task(step)), set())

    def iterate(self, start: int = 0, stop: int | None = None) -> Generator[Batch]:
        """Yields the batches of the steps from `start` up to `stop`; without `stop` the iterator is infinite.

        Close it, or end the process, and its workers end. BrokenRow names a row of which no example can be
        made, unless broken rows are skipped.
        """
        reported: set[str] = set()
        steps = itertools.count(start) if stop is None else range(start, stop)
        made = workers.ordered(self._maker, map(self._task, steps), self.workers)
        try:
            for result in made:
                yield self._reported(result, reported)
        finally:
            made.close()

    @functools.cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    @functools.cached_property
    def _maker(self) -> Maker:
        return Maker(
            self.rows,
            self.processor,
            self.seed,
            self.template,
            self.fit,
            self.max_length,
            self.bucket,
            self.skip_broken,
        )

    def _reported(self, result: tuple[Batch, list[Note]], reported: set[str]) -> Batch:
        batch, notes = result
        for subject, note in notes:
            if subject not in reported:
                reported.add(subject)
                self.report(note)
        return batch

    def _task(self, step: int) -> tuple[int, np.ndarray, int]:
        epoch, n = divmod(step, self.steps)
        order = self._order(epoch)
        taken = order[n * self.batch_size : (n + 1) * self.batch_size]
        missing = self.batch_size - len(taken)
        filled = np.concatenate([taken, np.resize(order, missing)])
        return epoch, filled, missing if self.seed is None else 0

    def _order(self, epoch: int) -> np.ndarray:
        """Indices N of the rows in the order of an epoch; that of the last one asked for is kept."""
        if epoch not in self._orders:
            self._orders.clear()
            if self.seed is None:
                self._orders[epoch] = np.arange(len(self.rows))
            else:
                self._orders[epoch] = shuffled(
                    self.rows, self.batch_size, self.group_by_length, self.seed, epoch
                )
        return self._orders[epoch]
