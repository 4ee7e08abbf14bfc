"""Answers cases through an engine, which takes another one as soon as one is answered."""

import contextlib
import os
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vipllava_jax.asking.many import Ended, ask_all
from vipllava_jax.data.marking import clamp_mark
from vipllava_jax.data.rows import BrokenRow
from vipllava_jax.engine.question import Question
from vipllava_jax.evaluation.batches import Answer, CaseBatch, CaseBatches
from vipllava_jax.evaluation.cases import Case
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.images import image_size
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.inputs.pixels import Fit

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine


class Asked(NamedTuple):
    """A case, and how its pictures are made square."""

    number: int
    fit: Fit | None


def engine_answers(
    engine: 'Engine', batches: CaseBatches, pending: Sequence[CaseBatch], answered: Container[int]
) -> Iterator[tuple[list[Answer], list[str]]]:
    """The missing answers of some batches as they are complete, and the errors of cases that are broken.

    BrokenRow names a case whose pictures are damaged, unless broken ones are skipped.
    """
    has_warned = False
    for ended in ask_all(engine, case_questions(batches, pending, answered)):
        answers, errors = [], []
        for one in ended:
            number, fit = one.key
            if one.answer is None:
                errors.append(_error(batches.cases.cases[number], one))
                continue
            if one.warnings and not has_warned:
                batches.picture_error(number, fit)  # warns as the batches do
                has_warned = True
            answers.append(Answer(number, one.answer.text, one.answer.finish_reason == 'stop'))
        yield answers, errors if batches.skip_broken else []
        if errors and not batches.skip_broken:
            raise BrokenRow(errors[0])


def case_questions(
    batches: CaseBatches, pending: Sequence[CaseBatch], answered: Container[int]
) -> Iterator[tuple[Asked, Question]]:
    """The cases that have no answer yet in the order of the batches, with the limits of their batches."""
    for batch in pending:
        settings = GenerationSettings(max_new_tokens=batch.max_new_tokens)
        for number in batch.numbers:
            if number in answered:
                continue
            case = batches.cases.cases[number]
            question = Question(
                case.turns, case.images, _marks(case), settings, template=batches.template, fit=batch.fit
            )
            yield Asked(number, batch.fit), question


def _marks(case: Case) -> list[Mark | str]:
    """The marks as questions have them: moved inside as `open_marked` does, on the picture in their text."""
    placed: list[Mark | str] = []
    for index, (path, marks) in enumerate(zip(case.images, case.marks, strict=True)):
        with contextlib.suppress(ValueError, OSError):  # what opens the picture says what is wrong with it
            size = image_size(path) if marks else (0, 0)
            marks = tuple(clamp_mark(mark, size) for mark in marks)
        placed += [f'{index + 1}/{mark}' if index else mark for mark in marks]
    return placed


def _error(case: Case, ended: Ended[Asked]) -> str:
    """The error of a case, in which its pictures have the paths that the user knows."""
    message = str(ended.error)
    for path in case.images:
        message = message.replace(os.path.abspath(path), str(path))
    return str(BrokenRow(f'{case.where}: {message}'))
