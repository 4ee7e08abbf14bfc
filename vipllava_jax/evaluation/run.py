"""Runs an evaluation: reads the rows, gets the missing answers, and counts the right ones."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vipllava_jax.evaluation.batches import Answer, CaseBatch, CaseBatches, group_cases
from vipllava_jax.evaluation.cases import VIP_BENCH, Case, Cases, read_cases
from vipllava_jax.evaluation.journal import open_journal
from vipllava_jax.evaluation.outputs import check_outputs
from vipllava_jax.evaluation.scores import Score, count_right, is_right
from vipllava_jax.files import write_text
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from vipllava_jax.generation.model import Model
    from vipllava_jax.model.vipllava import Params

Progress = Callable[[int, int], None]


class Result(NamedTuple):
    """The result of an evaluation."""

    scores: list[Score]
    answers: list[dict[str, Any]]  # the records of the file, in the order of the cases
    errors: list[str]  # messages about the first rows that were left out, and about pictures
    left_out: int
    cut_off: int  # the number of answers that reached the maximum number of tokens


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
    cases = read_cases(rows, images, by=by, together=together, skip_broken=skip_broken)
    options: dict[str, Any] = dict(template=template, fit=fit, max_new_tokens=max_new_tokens)
    batches = group_cases(cases, model.processor, model.cfg, batch=batch, skip_broken=skip_broken, **options)
    settings = {**(about or {}), **answer_settings(cases, **options)}
    return run(batches, lambda _: model.params, answers, settings, restart=restart, progress=progress)


def answer_settings(
    cases: Cases, template: str, fit: str | None, max_new_tokens: int | None
) -> dict[str, Any]:
    """The settings on which answers depend, and a digest of the questions."""
    return {'template': template, 'fit': fit, 'max_new_tokens': max_new_tokens, 'data': cases.digest}


def run(
    batches: CaseBatches,
    load: Callable[[CaseBatch], 'Params'],
    answers: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    *,
    restart: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Answers the questions without an answer, and counts; `load` is only called if there are any."""
    cases = batches.cases.cases
    errors = [*batches.cases.errors, *batches.errors]
    left_out = batches.cases.left_out + batches.left_out
    with open_journal(answers, dict(settings), restart, len(cases)) as journal:
        if pending := batches.pending(journal.records):
            params = load(pending[0])
            if progress:
                progress(len(journal.records), batches.total)
            for new_answers, new_errors in batches.answer(params, pending):
                journal.append(_record(cases[answer.number], answer) for answer in new_answers)
                errors += new_errors
                left_out += len(new_errors)
                if progress:
                    progress(len(journal.records), batches.total)
        records = [journal.records[n] for n in sorted(journal.records)]
    scores = count_right(batches.cases, {record['n']: record['answer'] for record in records})
    return Result(scores, records, errors, left_out, sum(not record['finished'] for record in records))


def _record(case: Case, answer: Answer) -> dict[str, Any]:
    """A record of the file of answers."""
    verdict: dict[str, Any] = {}
    if case.accepted:
        verdict = {'accepted': [*case.accepted], 'right': is_right(answer.text, case.accepted)}
    return {
        'n': answer.number,
        'id': case.name,
        'task': case.task.name,
        'question': case.turns[-1].text,
        'answer': answer.text,
        **verdict,
        'finished': answer.finished,
    }


def write_vip_bench(path: str | os.PathLike[str], result: Result) -> None:
    """Writes the file for ViP-Bench's evaluator: an object from question ids to answers."""
    records = [record for record in result.answers if record['task'] == VIP_BENCH.name]
    answers = {f'v1_{record["id"]}': record['answer'] for record in records}
    write_text(Path(path), json.dumps(answers, indent=2, ensure_ascii=False) + '\n')
