"""Makes a batch from its rows, in this process or a worker process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vipllava_jax.data.batch_settings import BatchSettings
from vipllava_jax.data.conversations import IGNORE, Example, encode_conversation
from vipllava_jax.data.examples import Examples
from vipllava_jax.data.marking import open_marked
from vipllava_jax.data.order import sample_seed
from vipllava_jax.data.region_prompts import make_conversation
from vipllava_jax.data.rows import BrokenRow, Row, Rows, raising_broken_row
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.inputs.padding import pad_ids, pad_images, round_up
from vipllava_jax.inputs.pixels import marks_cut_off, uint8_pixels
from vipllava_jax.inputs.processor import Processor

MAX_ATTEMPTS = 100  # rows that are tried in place of a broken one

Note = tuple[str, str]  # (subject, message); only one message per subject is reported


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
    image_count: int
    images: list[np.ndarray]  # hw3 uint8, with the marks drawn on them; none if another process loads them


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
    loaded: tuple[int, ...] | None  # as in `Batches`

    def __call__(self, task: Task) -> tuple[TrainingBatch, list[Note]]:
        notes: list[Note] = []
        loaded = range(len(task.rows)) if self.loaded is None else self.loaded
        samples = [self._find_sample(int(i), task.epoch, n in loaded, notes) for n, i in enumerate(task.rows)]
        names, rows, counts, images = zip(*samples, strict=True)
        longest = max(len(row.tokens) for row in rows)
        T = round_up(longest, self.settings.pad_to_multiple_of)
        tokens = pad_ids([row.tokens for row in rows], T, self.processor.tokenizer.pad)
        targets = pad_ids([row.targets for row in rows], T, IGNORE)
        targets[len(samples) - task.repeated :] = IGNORE
        side, most = self.processor.image_settings.side, max(counts)
        padded_images, _ = pad_images([images[n] for n in loaded], side, np.uint8, most)
        examples = Examples(tokens, targets, padded_images, np.array(counts, np.int32))
        return TrainingBatch(examples, names), notes

    def _find_sample(self, i: int, epoch: int, loads: bool, notes: list[Note]) -> Sample:
        """The sample of a row or, if that is broken or has no answer left, of the next good one."""
        for n in range(MAX_ATTEMPTS):
            try:
                return self._make_sample(self.rows[(i + n) % len(self.rows)], epoch, loads, notes)
            except BrokenRow as error:
                if not (self.settings.skip_broken or isinstance(error, RowWithoutAnswer)):
                    raise
                if loads:
                    notes.append((str(error), f'skipped: {error}'))
        raise BrokenRow(f'{self.rows.where(i)}: this row and the {MAX_ATTEMPTS - 1} after it are broken')

    def _make_sample(self, row: Row, epoch: int, loads: bool, notes: list[Note]) -> Sample:
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
                images = []
                try:
                    if loads:
                        images = self._load_images(row, marks, rng, notes)
                except (ValueError, OSError) as error:
                    if self.loaded is None or not self.settings.skip_broken:
                        raise
                    # the other processes cannot know that another row is needed
                    notes.append((row.where, f'without its targets: {row.where}: {error}'))
                    example = example._replace(targets=np.full_like(example.targets, IGNORE))
                return Sample(row.name, example, count, images)
        except BrokenRow:
            raise
        except Exception as error:
            raise RuntimeError(f'{row.where}: {error!r}') from error

    def _load_images(
        self, row: Row, marks: Sequence[Sequence[Mark]], rng: np.random.Generator | None, notes: list[Note]
    ) -> list[np.ndarray]:
        """The pictures hw3 of a row, with its marks; adds a note for each mark that is cropped."""
        images = []
        for path, row_marks in zip(row.images, marks, strict=True):
            seed = int(rng.integers(1 << 32)) if row_marks and rng is not None else None
            image = open_marked(path, row_marks, seed)
            for mark in marks_cut_off(image, self.processor.image_settings, self.settings.fit):
                message = f"the crop cuts off the mark {mark}; fit 'pad' keeps whole pictures"
                notes.append(('crop', f'{row.where}: {message}'))
            images.append(uint8_pixels(image, self.processor.image_settings, self.settings.fit))
        return images
