"""Answers cases in batches; threads load the pictures ahead."""

import dataclasses
import os
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.answering.choices import EncodedOptions, encode_options
from vipllava_jax.answering.prefixes import shared_prefix
from vipllava_jax.answering.replies import replies, with_template_stops
from vipllava_jax.config import Config
from vipllava_jax.data.marking import open_marked
from vipllava_jax.data.row_checks import raise_unless_skipped
from vipllava_jax.data.rows import BrokenRow
from vipllava_jax.evaluation.cases import Case, Cases, check_options
from vipllava_jax.evaluation.grouping import CaseBatch, CaseShape, divide
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.scoring import score_answers
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


class Answer(NamedTuple):
    """The answer to a case."""

    number: int
    text: str
    finished: bool  # whether it ended before the maximum number of tokens
    scores: tuple[float, ...] = ()  # of the case's options, if one is chosen


class PreparedBatch(NamedTuple):
    """The input arrays of a batch, and the errors of cases that are not in it."""

    numbers: tuple[int, ...]
    batch: Batch | None  # None: all cases are broken
    max_new_tokens: int
    errors: list[str]
    options: tuple[EncodedOptions, ...] = ()  # of each case, if one is chosen
    one_picture: bool = False  # as in `CaseBatch`


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
    choose: bool = False  # whether the likeliest of each case's options is found, too
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
        loaded: dict[Any, list[np.ndarray]] = {}
        for number in batch.numbers:
            case = self.cases.cases[number]
            try:
                if case.pictures not in loaded:
                    loaded[case.pictures] = self._pictures(case, batch.fit)
            except BrokenRow as error:
                if not self.skip_broken:
                    raise
                errors.append(str(error))
                continue
            ids.append(self.processor.encode(case.turns, len(case.images), self.template))
            pictures.append(loaded[case.pictures])
            numbers.append(number)
        if not numbers:
            return PreparedBatch((), None, batch.max_new_tokens, errors)
        rows = [n % len(numbers) for n in range(batch.size)]
        arrays = self.processor.collate([ids[n] for n in rows], [pictures[n] for n in rows])
        options = [self.options(self.cases.cases[number]) for number in numbers] if self.choose else ()
        prepared = PreparedBatch(tuple(numbers), arrays, batch.max_new_tokens, errors, tuple(options))
        return prepared._replace(one_picture=batch.one_picture)

    def options(self, case: Case) -> EncodedOptions:
        """The ids of the options of a case."""
        return encode_options(self.processor, case.turns, len(case.images), case.options, self.template)

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
        prefix = shared_prefix(model, prepared.batch) if prepared.one_picture else None
        rows = replies(model, prepared.batch, self.settings(prepared.max_new_tokens), prefix)
        texts = [reply.text() for reply, _ in zip(rows, prepared.numbers, strict=False)]
        scores = self._scores(params, prepared) if self.choose else [()] * len(texts)
        return [
            Answer(number, text, reply.finished, of_options)
            for number, text, reply, of_options in zip(prepared.numbers, texts, rows, scores, strict=False)
        ]

    def _scores(self, params: Params, prepared: PreparedBatch) -> list[tuple[float, ...]]:
        """The log-probabilities of the options of each case in a batch."""
        assert prepared.batch is not None
        options = [prepared.options[n % len(prepared.options)] for n in range(len(prepared.batch.lengths))]
        starts = prepared.batch.lengths - [encoded.dropped for encoded in options]
        batch = prepared.batch._replace(lengths=starts.astype(np.int32))
        scores = score_answers(params, batch, [encoded.ids for encoded in options], cfg=self.cfg)
        return [tuple(of_case.tolist()) for of_case in scores]


def group_cases(
    cases: Cases,
    processor: Processor,
    cfg: Config,
    *,
    batch: int = 16,
    template: str = DEFAULT_TEMPLATE,
    fit: Fit | None = None,
    max_new_tokens: int | None = None,
    choose: bool = False,
    skip_broken: bool = False,
    warn: Callable[[str, str], None] = lambda subject, message: None,
    shard: Shard | None = None,
) -> CaseBatches:
    """Groups all cases, or those of one shard, into batches of at most `batch`.

    Cases whose prompts leave no room for an answer are a ValueError or, with `skip_broken`, are left out; the
    other cases keep their numbers. `fit` and `max_new_tokens` default to those of each case's task. With
    `choose`, the likeliest of each case's options is found, too; cases without options are a ValueError.
    """
    _check_options(processor, cfg, batch, template, fit, max_new_tokens)
    if choose:
        check_options(cases)
    processor = processor.for_model(cfg)
    grouped = CaseBatches(cases, processor, cfg, template, (), skip_broken, warn, choose)
    shapes, errors = [], []
    for number, case in enumerate(cases.cases):
        if shard and not shard.holds(case.key):
            continue
        try:
            length = _prompt_length(case, grouped, max_new_tokens or 1)
        except ValueError as error:
            errors.append(str(BrokenRow(f'{case.where}: {error}')))
            continue
        new = max_new_tokens or case.task.max_new_tokens
        fitted = fit or case.task.fit or ''
        shapes.append(CaseShape(fitted, new, len(case.images), length, number, case.pictures))
    listed = raise_unless_skipped(errors, len(cases.cases), skip_broken, 'questions')
    batches = tuple(divide(shapes, batch, cfg.text.context))
    return dataclasses.replace(grouped, batches=batches, errors=listed, left_out=len(errors))


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


def _prompt_length(case: Case, batches: CaseBatches, new: int) -> int:
    """The tokens of a prompt; ValueError if it and `new` more, or an option, exceed the context."""
    length = len(batches.processor.encode(case.turns, len(case.images), batches.template))
    context = batches.cfg.text.context
    if batches.choose:
        new = max(new, *map(len, batches.options(case).ids))
    if length + new > context:
        raise ValueError(
            f'a prompt of {length} tokens and {new} new ones exceed the context of {context}: shorten it, or '
            'request fewer new tokens'
        )
    return length
