"""Answers one question about each of many regions of a picture."""

import dataclasses
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vipllava_jax.answering.prefixes import shared_prefix
from vipllava_jax.answering.prompts import insert_phrases, single_prompt
from vipllava_jax.answering.questions import check_model, for_one_answer
from vipllava_jax.answering.region_marks import Mode, Region, check_options, region_marks, told_apart
from vipllava_jax.answering.replies import replies, with_template_stops
from vipllava_jax.config import Config
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.plan import make_plan
from vipllava_jax.generation.result import GeneratedAnswer
from vipllava_jax.generation.setting_checks import NUMBERS, later_seed
from vipllava_jax.generation.settings import GenerationSettings, rows_of
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.images import ImageSource, open_image
from vipllava_jax.inputs.marks import COLORS, Mark, draw
from vipllava_jax.inputs.pixels import Fit, check_fit, marks_cut_off, pixels
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE, Turn
from vipllava_jax.threads import map_ahead

ROWS = 16  # regions that are answered together if each has a picture of its own
THREADS = min(8, os.cpu_count() or 1)  # batches that are drawn while others are answered


class CompleteReply(Protocol):
    """What is known of an answer that has ended, whatever has generated it."""

    processor: Processor
    tokens: list[int]

    @property
    def finish_reason(self) -> str: ...

    def generated(self) -> GeneratedAnswer: ...


@dataclass(frozen=True)
class RegionAnswer:
    """The answer about a region."""

    index: int
    text: str
    reply: CompleteReply


def ask_regions(
    model: Model,
    question: str,
    image: ImageSource,
    regions: Iterable[Region],
    *,
    mode: Mode = 'separate',
    shape: str = 'rectangle',
    settings: GenerationSettings | None = None,
    template: str = DEFAULT_TEMPLATE,
    fit: Fit | None = None,
) -> list[str]:
    """The model's answers to a question about each region of an image, in the order of the regions.

    {mark} in the question is replaced by the phrase of a region's mark. A region is a box (x1, y1, x2, y2), a
    Mark, its text, or an annotation as in COCO, whose `bbox` is used by rectangles, ellipses and arrows, and
    whose `segmentation` by the other shapes; `shape` is that of regions other than Marks. In the mode
    'separate' each answer is that of `answer`, about an image with one mark. In 'together' up to nine regions
    are marked on one image in different colours, which is computed once for all of them. Of the settings,
    each number may also be one per region; with a seed, region n is answered with the seed + n.

    Raises ValueError, TypeError or FileNotFoundError before anything long runs, and warns of marks that
    cropping would cut off.
    """
    check_model(model)
    settings = for_one_answer(settings, model.settings, 'there is one answer per region: leave it out')
    check_options(question, mode, shape)
    picture = open_image(image)
    marks = region_marks(regions, shape, picture.size)
    questions = RegionQuestions.of(
        model.processor, question, picture, marks, mode=mode, template=template, fit=fit
    )
    settings = with_template_stops(settings, model.processor, template)
    questions.check(model.params, model.cfg, settings)
    if message := questions.cut_off:
        warnings.warn(message, stacklevel=2)
    return [answer.text for group in answer_regions(model, questions, settings) for answer in group]


@dataclass(frozen=True)
class RegionQuestions:
    """A question about each of some regions of a picture, in groups that are answered together."""

    processor: Processor
    picture: Image.Image
    marks: tuple[Mark, ...]  # of each region
    prompts: tuple[str, ...]  # for each region, with the phrase of its mark
    ids: tuple[list[int], ...]  # of each prompt
    groups: tuple[range, ...]  # the indices of the regions
    together: bool  # whether all marks of a group are drawn on one picture
    template: str
    fit: Fit | None

    @classmethod
    def of(
        cls,
        processor: Processor,
        question: str,
        picture: Image.Image,
        marks: Sequence[Mark],
        *,
        mode: Mode,
        template: str = DEFAULT_TEMPLATE,
        fit: Fit | None = None,
        rows: int = ROWS,
    ) -> 'RegionQuestions':
        """The questions, at most `rows` per group; ValueError for a prompt that cannot be encoded."""
        check_fit(fit)
        together = mode == 'together'
        rows = min(rows, len(COLORS)) if together else rows
        groups = [range(start, min(start + rows, len(marks))) for start in range(0, len(marks), rows)]
        if together:
            marks = [mark for group in groups for mark in told_apart(marks[group.start : group.stop])]
        prompts = [insert_phrases(question, [mark]) for mark in marks]
        ids = {p: processor.encode([Turn('user', p)], 1, template) for p in dict.fromkeys(prompts)}
        rows_of_ids = tuple(ids[prompt] for prompt in prompts)
        of_regions = tuple(marks), tuple(prompts), rows_of_ids, tuple(groups)
        return cls(processor, picture, *of_regions, together, template, fit)

    def rows(self, group: range) -> list[int]:
        """The regions of the rows of a group; the last group is filled up, so that all have one shape."""
        return [group[n % len(group)] for n in range(len(self.groups[0]))]

    def batch(self, group: range) -> Batch:
        """The input arrays of a group, drawn."""
        rows = self.rows(group)
        drawn = [self.marks[group.start : group.stop]] if self.together else [[self.marks[n]] for n in group]
        pictures = [
            pixels(draw(self.picture, marks), self.processor.image_settings, self.fit) for marks in drawn
        ]
        return self.processor.collate(
            [self.ids[n] for n in rows], [[pictures[r % len(pictures)]] for r in range(len(rows))]
        )

    def blank(self, rows: Sequence[int]) -> Batch:
        """The input arrays of some regions with a black picture, for checks and for compiling."""
        side = self.processor.image_settings.side
        return self.processor.collate(
            [self.ids[n] for n in rows], [[np.zeros((side, side, 3), np.float32)] for _ in rows]
        )

    def settings(self, settings: GenerationSettings, rows: Sequence[int]) -> GenerationSettings:
        """The settings of some regions; numbers that are given per region, and seeds, are those of each."""
        changes: dict[str, Any] = {}
        for name in NUMBERS:
            if isinstance(value := getattr(settings, name), tuple):
                changes[name] = rows_of(name, value, len(self.marks))[[*rows]]
        if isinstance(settings.seed, int):
            changes['seed'] = [later_seed(settings.seed, n) for n in rows]
        return dataclasses.replace(settings, **changes)

    def check(self, params: Any, cfg: Config, settings: GenerationSettings) -> None:
        """Raises the errors of generation for the longest prompt; params may be shapes."""
        if not self.groups:
            return
        longest = [max(range(len(self.ids)), key=lambda n: len(self.ids[n]))]
        with single_prompt():
            make_plan(params, self.blank(longest), cfg, self.settings(settings, longest), self.processor)

    @cached_property
    def cut_off(self) -> str:
        """A warning of the marks that cropping cuts off; '' if there are none."""
        settings = self.processor.image_settings
        if (self.fit or settings.fit) != 'crop' or not self.marks:
            return ''
        if not (cut := marks_cut_off(draw(self.picture, self.marks), settings, self.fit)):
            return ''
        return (
            f'the crop cuts off {len(cut)} of {len(self.marks)} marks, the first of them {cut[0]}: '
            "fit='pad' (--fit pad) keeps the whole image"
        )


def answer_regions(
    model: Model,
    questions: RegionQuestions,
    settings: GenerationSettings,
    groups: Sequence[range] | None = None,
) -> Iterator[list[RegionAnswer]]:
    """The answers of the groups, by default all, one after another; threads draw those that follow."""
    chosen = questions.groups if groups is None else groups
    pool = ThreadPoolExecutor(THREADS)
    try:
        batches = map_ahead(pool, questions.batch, chosen, THREADS)
        for group, batch in zip(chosen, batches, strict=True):
            of_rows = questions.settings(settings, questions.rows(group))
            prefix = shared_prefix(model, batch) if questions.together else None
            rows = replies(model, batch, of_rows, prefix=prefix)
            yield [
                RegionAnswer(n, reply.text(), reply)
                for n, reply in zip(group, rows, strict=False)  # without those that fill it up
            ]
    finally:
        pool.shutdown(cancel_futures=True)
