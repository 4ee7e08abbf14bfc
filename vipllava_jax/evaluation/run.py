"""Runs an evaluation: reads the rows, gets the missing answers, and counts the right ones."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vipllava_jax.evaluation.answering import Asked, Questions, Said, questions
from vipllava_jax.evaluation.cases import VIP_BENCH, Case, Cases, read
from vipllava_jax.evaluation.journal import opened
from vipllava_jax.evaluation.outputs import check_outputs
from vipllava_jax.evaluation.scores import Score, right, scores
from vipllava_jax.files import write_text
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from vipllava_jax.loading import Model
    from vipllava_jax.model.vipllava import Params

Progress = Callable[[int, int], None]


class Result(NamedTuple):
    """The result of an evaluation."""

    scores: list[Score]
    answers: list[dict[str, Any]]  # as in the file, in the order of the cases
    broken: list[str]  # the errors of the first rows that were left out, and of pictures
    left_out: int
    cut: int  # answers that reached the limit of tokens


def evaluate(
    model: 'Model',
    rows: str | os.PathLike[str] | Sequence[Any],
    *,
    images: str | os.PathLike[str] | None = None,
    by: Sequence[str] = (),
    together: Sequence[str] = (),
    batch: int = 16,
    template: str = DEFAULT_TEMPLATE,
    fit: Fit | None = None,
    max_new_tokens: int | None = None,
    answers: str | os.PathLike[str] | None = None,
    about: Mapping[str, Any] | None = None,
    restart: bool = False,
    skip_broken: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Asks a model all questions of some files, or of rows as dicts, and counts the right answers.

    `images` is the folder of the pictures, by default that of each file. Answers are also counted separately
    for the values of each field in `by`; rows with the same value of a field in `together` count as one,
    which is right if all of them are. Answers are appended to the file `answers`; existing ones are not asked
    for again. `progress` is called with the number of answers and the total. Raises ValueError for broken
    rows and for a file of answers with other settings; `about`, a description of the model, is one of them.
    """
    files = [rows] if isinstance(rows, (str, os.PathLike)) else rows
    if answers is not None:
        inputs = [Path(file) for file in files if isinstance(file, (str, os.PathLike))]
        check_outputs({'answers': Path(answers)}, inputs)
    cases = read(rows, images, by=by, together=together, skip_broken=skip_broken)
    how: dict[str, Any] = dict(batch=batch, template=template, fit=fit, max_new_tokens=max_new_tokens)
    asked = questions(cases, model.processor, model.cfg, **how, skip_broken=skip_broken)
    settings = {**(about or {}), **identity(cases, template, fit, max_new_tokens)}
    return run(asked, lambda _: model.params, answers, settings, restart=restart, progress=progress)


def identity(cases: Cases, template: str, fit: str | None, max_new_tokens: int | None) -> dict[str, Any]:
    """The settings on which answers depend, and a digest of the questions."""
    return {'template': template, 'fit': fit, 'max_new_tokens': max_new_tokens, 'data': cases.digest}


def run(
    asked: Questions,
    load: Callable[[Asked], 'Params'],
    answers: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    *,
    restart: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Answers the questions without an answer, and counts; `load` is only called if there are any."""
    cases = asked.cases.cases
    broken = [*asked.cases.broken, *asked.broken]
    left_out = asked.cases.left_out + asked.left_out
    with opened(answers, dict(settings), restart, len(cases)) as journal:
        if pending := asked.pending(journal.records):
            params = load(pending[0])
            if progress:
                progress(len(journal.records), asked.total)
            for said, wrong in asked.answer(params, pending):
                journal.append(_record(cases[one.number], one) for one in said)
                broken += wrong
                left_out += len(wrong)
                if progress:
                    progress(len(journal.records), asked.total)
        records = [journal.records[n] for n in sorted(journal.records)]
    found = scores(asked.cases, {record['n']: record['said'] for record in records})
    return Result(found, records, broken, left_out, sum(not record['finished'] for record in records))


def _record(case: Case, said: Said) -> dict[str, Any]:
    """A record of the file of answers."""
    judged = {'accepted': [*case.accepted], 'right': right(said.text, case.accepted)} if case.accepted else {}
    return {
        'n': said.number,
        'id': case.name,
        'task': case.task.name,
        'question': case.turns[-1].text,
        'said': said.text,
        **judged,
        'finished': said.finished,
    }


def write_vip_bench(path: str | os.PathLike[str], result: Result) -> None:
    """Writes the file for ViP-Bench's evaluator: an object from question ids to answers."""
    own = [record for record in result.answers if record['task'] == VIP_BENCH.name]
    text = json.dumps({f'v1_{record["id"]}': record['said'] for record in own}, indent=2, ensure_ascii=False)
    write_text(Path(path), text + '\n')
