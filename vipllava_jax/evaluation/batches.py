"""Groups cases into batches of few shapes and answers them; threads load the pictures ahead."""

import itertools
import os
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.answering.replies import replies, with_template_stops
from vipllava_jax.config import Config
from vipllava_jax.data.marking import open_marked
from vipllava_jax.data.row_checks import raise_unless_skipped
from vipllava_jax.data.rows import BrokenRow
from vipllava_jax.evaluation.cases import Case, Cases
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.pixels import Fit, check_fit, marks_cut_off, pixels
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE, check_template
from vipllava_jax.messages import brief
from vipllava_jax.model.vipllava import Params
from vipllava_jax.row_shards import Shard
from vipllava_jax.threads import map_ahead

THREADS = min(8, os.cpu_count() or 1)


class CaseBatch(NamedTuple):
    """Cases that are answered together, by number."""

    numbers: tuple[int, ...]
    size: int  # the number of rows; if there are fewer cases, some are repeated
    fit: Fit | None
    max_new_tokens: int


class Answer(NamedTuple):
    """The answer to a case."""

    number: int
    text: str
    finished: bool  # whether it ended before the maximum number of tokens


class PreparedBatch(NamedTuple):
    """The input arrays of a batch, and the errors of cases that are not in it."""

    numbers: tuple[int, ...]
    batch: Batch | None  # None: all cases are broken
    max_new_tokens: int
    errors: list[str]


@dataclass(frozen=True)
class CaseBatches:
    """All cases, grouped into batches of similar shape, which do not depend on existing answers."""

    cases: Cases
    processor: Processor
    cfg: Config
    template: str
    batches: tuple[CaseBatch, ...]
    skip_broken: bool
    warn: Callable[[str, str], None]  # called with a subject and a message about it
    errors: tuple[str, ...] = ()  # messages about the first cases that were left out
    left_out: int = 0  # cases that were left out

    @property
    def total(self) -> int:
        """The number of cases in the batches."""
        return sum(len(batch.numbers) for batch in self.batches)

    def pending(self, answered: Container[int]) -> list[CaseBatch]:
        """The batches with missing answers."""
        return [batch for batch in self.batches if not all(number in answered for number in batch.numbers)]

    def settings(self, max_new_tokens: int) -> GenerationSettings:
        settings = GenerationSettings(max_new_tokens=max_new_tokens)
        return with_template_stops(settings, self.processor, self.template)

    def prepare(self, batch: CaseBatch) -> PreparedBatch:
        """Loads the pictures of a batch; BrokenRow names a damaged one."""
        ids, pictures, numbers, errors = [], [], [], []
        for number in batch.numbers:
            case = self.cases.cases[number]
            try:
                pictures.append(self._pictures(case, batch.fit))
            except BrokenRow as error:
                if not self.skip_broken:
                    raise
                errors.append(str(error))
                continue
            ids.append(self.processor.encode(case.turns, len(case.images), self.template))
            numbers.append(number)
        if not numbers:
            return PreparedBatch((), None, batch.max_new_tokens, errors)
        rows = [n % len(numbers) for n in range(batch.size)]
        arrays = self.processor.collate([ids[n] for n in rows], [pictures[n] for n in rows])
        return PreparedBatch(tuple(numbers), arrays, batch.max_new_tokens, errors)

    def picture_error(self, number: int, fit: Fit | None) -> str | None:
        """The error of a case whose pictures cannot be loaded, or None."""
        try:
            self._pictures(self.cases.cases[number], fit)
        except BrokenRow as error:
            return str(error)
        return None

    def _pictures(self, case: Case, fit: Fit | None) -> list[np.ndarray]:
        pictures = []
        try:
            for path, marks in zip(case.images, case.marks, strict=True):
                image = open_marked(path, marks)
                for mark in marks_cut_off(image, self.processor.image_settings, fit):
                    self.warn('crop', f'{case.where}: the crop cuts off the mark {mark}: see --fit pad')
                pictures.append(pixels(image, self.processor.image_settings, fit))
        except (ValueError, OSError) as error:
            raise BrokenRow(f'{case.where}: {error}') from None
        return pictures

    def prepare_ahead(self, pending: Sequence[CaseBatch]) -> Iterator[PreparedBatch]:
        """`prepare` for each batch, in threads, while the caller answers those before it."""
        pool = ThreadPoolExecutor(THREADS)
        try:
            yield from map_ahead(pool, self.prepare, pending, THREADS)
        finally:
            pool.shutdown(cancel_futures=True)

    def answers(self, params: Params, prepared: PreparedBatch) -> list[Answer]:
        """The answers of a batch."""
        if prepared.batch is None:
            return []
        model = Model(params, self.cfg, self.processor)
        rows = replies(model, prepared.batch, self.settings(prepared.max_new_tokens))
        return [
            Answer(number, reply.text(), reply.finished)
            for number, reply in zip(prepared.numbers, rows, strict=False)  # without the repeated rows
        ]


def group_cases(
    cases: Cases,
    processor: Processor,
    cfg: Config,
    *,
    batch: int = 16,
    template: str = DEFAULT_TEMPLATE,
    fit: Fit | None = None,
    max_new_tokens: int | None = None,
    skip_broken: bool = False,
    warn: Callable[[str, str], None] = lambda subject, message: None,
    shard: Shard | None = None,
) -> CaseBatches:
    """Groups all cases, or those of one shard, into batches of at most `batch`.

    Cases whose prompts leave no room for an answer are a ValueError or, with `skip_broken`, are left out; the
    other cases keep their numbers. `fit` and `max_new_tokens` default to those of each case's task.
    """
    _check_options(processor, cfg, batch, template, fit, max_new_tokens)
    processor = processor.for_model(cfg)
    shapes, errors = [], []
    for number, case in enumerate(cases.cases):
        if shard and not shard.holds(case.key):
            continue
        try:
            length = _prompt_length(case, processor, template, cfg.text.context, max_new_tokens or 1)
        except ValueError as error:
            errors.append(str(BrokenRow(f'{case.where}: {error}')))
            continue
        new = max_new_tokens or case.task.max_new_tokens
        shapes.append((fit or case.task.fit or '', new, len(case.images), length, number))
    listed = raise_unless_skipped(errors, len(cases.cases), skip_broken, 'questions')
    batches = tuple(_batches_of(shapes, batch, cfg.text.context))
    return CaseBatches(cases, processor, cfg, template, batches, skip_broken, warn, listed, len(errors))


def _batches_of(shapes: list[tuple[Any, ...]], batch: int, context: int) -> Iterator[CaseBatch]:
    """Batches of cases of similar length, from (fit, new tokens, images, prompt length, number) of each."""
    for (fit, new), group in itertools.groupby(sorted(shapes), key=lambda shape: shape[:2]):
        *_, lengths, numbers = zip(*group, strict=True)
        new = min(new, context - max(lengths))
        for start in range(0, len(numbers), batch):
            size = min(batch, len(numbers))
            yield CaseBatch(numbers[start : start + batch], size, fit or None, new)


def _check_options(
    processor: Processor, cfg: Config, batch: int, template: str, fit: Fit | None, max_new_tokens: int | None
) -> None:
    check_fit(fit)
    check_template(template, processor.chat_template)
    for name, value in (('batch', batch), ('max_new_tokens', max_new_tokens)):
        if value is not None and value < 1:
            raise ValueError(f'{name} is {brief(value)}: give 1 or more')
    if (max_new_tokens or 1) >= cfg.text.context:
        raise ValueError(
            f'max_new_tokens {brief(max_new_tokens)}: would exceed the {cfg.text.context} tokens of the '
            "model's context even after an empty prompt; give fewer"
        )


def _prompt_length(case: Case, processor: Processor, template: str, context: int, new: int) -> int:
    """The tokens of a prompt; ValueError if it and `new` more exceed the context."""
    length = len(processor.encode(case.turns, len(case.images), template))
    if length + new > context:
        raise ValueError(
            f'a prompt of {length} tokens and {new} new ones exceed the context of {context}: shorten it, or '
            'request fewer new tokens'
        )
    return length
