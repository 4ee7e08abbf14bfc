"""Answers cases in batches of few shapes; threads load the pictures ahead."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vipllava_jax.config import Config
from vipllava_jax.data.marking import open_marked
from vipllava_jax.data.row_checks import raise_unless_skipped
from vipllava_jax.data.rows import BrokenRow
from vipllava_jax.evaluation.cases import Case, Cases
from vipllava_jax.generation.stopping import stop_conditions, truncate_at_stops
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.pixels import Fit, check_fit, marks_cut_off, pixels
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE, check_template
from vipllava_jax.messages import brief
from vipllava_jax.model.vipllava import Params
from vipllava_jax.threads import map_ahead

THREADS = min(8, os.cpu_count() or 1)


class Asked(NamedTuple):
    """A batch of cases, by number."""

    numbers: tuple[int, ...]
    size: int  # rows of the batch; if there are fewer cases, some are repeated
    fit: Fit | None
    longest: int  # tokens of an answer


class Said(NamedTuple):
    """An answer."""

    number: int
    text: str
    finished: bool  # whether it ended before the limit of tokens


class Ready(NamedTuple):
    """The input arrays of a batch, and the errors of cases that are not in it."""

    numbers: tuple[int, ...]
    batch: Batch | None  # None: all cases are broken
    longest: int
    broken: list[str]


@dataclass(frozen=True)
class Questions:
    """All cases, grouped into batches of similar shape, which do not depend on existing answers."""

    cases: Cases
    processor: Processor
    cfg: Config
    template: str
    batches: tuple[Asked, ...]
    skip_broken: bool
    note: Callable[[str, str], None]  # called with a subject and a message about it
    broken: tuple[str, ...] = ()  # the errors of the first cases that were left out
    left_out: int = 0  # cases that were left out

    @property
    def total(self) -> int:
        """The number of cases that are asked."""
        return sum(len(batch.numbers) for batch in self.batches)

    def pending(self, answered: Any) -> list[Asked]:
        """The batches with missing answers."""
        return [batch for batch in self.batches if not all(number in answered for number in batch.numbers)]

    def settings(self, longest: int) -> dict[str, Any]:
        """The arguments of `decoding.stream`."""
        return {'max_new_tokens': longest, 'eos': stop_conditions(self.processor, self.template, self.cfg)[1]}

    def make(self, asked: Asked) -> Ready:
        """Loads the pictures of a batch; BrokenRow names a damaged one."""
        ids, pictures, numbers, broken = [], [], [], []
        for number in asked.numbers:
            case = self.cases.cases[number]
            try:
                pictures.append(self._pictures(case, asked.fit))
            except BrokenRow as error:
                if not self.skip_broken:
                    raise
                broken.append(str(error))
                continue
            ids.append(self.processor.encode(case.turns, len(case.images), self.template))
            numbers.append(number)
        if not numbers:
            return Ready((), None, asked.longest, broken)
        filled = [n % len(numbers) for n in range(asked.size)]
        batch = self.processor.collate([ids[n] for n in filled], [pictures[n] for n in filled])
        return Ready(tuple(numbers), batch, asked.longest, broken)

    def _pictures(self, case: Case, fit: Fit | None) -> list[np.ndarray]:
        made = []
        try:
            for path, marks in zip(case.images, case.marks, strict=True):
                image = open_marked(path, marks)
                for mark in marks_cut_off(image, self.processor.image_settings, fit):
                    self.note('crop', f'{case.where}: the crop cuts off the mark {mark}: see --fit pad')
                made.append(pixels(image, self.processor.image_settings, fit))
        except (ValueError, OSError) as error:
            raise BrokenRow(f'{case.where}: {error}') from None
        return made

    def answer(self, params: Params, pending: Sequence[Asked]) -> Iterator[tuple[list[Said], list[str]]]:
        """The answers of each batch, and the errors of its broken cases."""
        pool = ThreadPoolExecutor(THREADS)
        try:
            for ready in map_ahead(pool, self.make, pending, THREADS):
                yield self._said(params, ready), ready.broken
        finally:
            pool.shutdown(cancel_futures=True)

    def _said(self, params: Params, ready: Ready) -> list[Said]:
        if ready.batch is None:
            return []
        from vipllava_jax.generation.decoding import stream

        stops, eos = stop_conditions(self.processor, self.template, self.cfg)
        chunks: list[np.ndarray] = []
        for chunk in stream(params, ready.batch, cfg=self.cfg, **self.settings(ready.longest)):
            chunks.append(chunk)
            if stops and all(one.finished for one in self._read(ready.numbers, chunks, stops, eos)):
                break  # the decoder does not check for stop texts
        return self._read(ready.numbers, chunks, stops, eos)

    def _read(
        self, numbers: Sequence[int], chunks: Sequence[np.ndarray], stops: Sequence[str], eos: Sequence[int]
    ) -> list[Said]:
        """The answers so far."""
        said = []
        rows = np.concatenate(chunks, axis=1)[: len(numbers)]
        for number, ids in zip(numbers, rows, strict=True):
            end = np.isin(ids, eos)
            whole = self.processor.decode(ids[: end.argmax()] if end.any() else ids)
            text = ''.join(truncate_at_stops([whole], stops))
            said.append(Said(number, text.strip(), bool(end.any()) or len(text) < len(whole)))
        return said


def questions(
    cases: Cases,
    processor: Processor,
    cfg: Config,
    *,
    batch: int = 16,
    template: str = DEFAULT_TEMPLATE,
    fit: Fit | None = None,
    max_new_tokens: int | None = None,
    skip_broken: bool = False,
    note: Callable[[str, str], None] = lambda subject, message: None,
) -> Questions:
    """Groups cases into batches of at most `batch`.

    Cases whose prompts leave no room for an answer are a ValueError or, with `skip_broken`, are left out; the
    numbers of the others do not change. `fit` and `max_new_tokens` default to those of each case's task.
    """
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
    processor = processor.for_model(cfg)
    shapes, broken = [], []
    for number, case in enumerate(cases.cases):
        try:
            length = _length(case, processor, template, cfg.text.context, max_new_tokens or 1)
        except ValueError as error:
            broken.append(str(BrokenRow(f'{case.where}: {error}')))
            continue
        longest = max_new_tokens or case.task.longest
        shapes.append((fit or case.task.fit or '', longest, len(case.images), length, number))
    shown = raise_unless_skipped(broken, len(cases.cases), skip_broken, 'questions')
    batches: list[Asked] = []
    for (how, longest), group in itertools.groupby(sorted(shapes), key=lambda shape: shape[:2]):
        *_, lengths, numbers = zip(*group, strict=True)
        longest = min(longest, cfg.text.context - max(lengths))
        for start in range(0, len(numbers), batch):
            size = min(batch, len(numbers))
            batches.append(Asked(numbers[start : start + batch], size, how or None, longest))
    return Questions(cases, processor, cfg, template, tuple(batches), skip_broken, note, shown, len(broken))


def _length(case: Case, processor: Processor, template: str, context: int, new: int) -> int:
    """The tokens of a prompt; ValueError if it and `new` more exceed the context."""
    length = len(processor.encode(case.turns, len(case.images), template))
    if length + new > context:
        raise ValueError(
            f'a prompt of {length} tokens and {new} new exceed the {context} of the model: shorten it, or '
            'ask for fewer'
        )
    return length
