"""Runs an evaluation: reads the rows, gets the missing answers, and counts the right ones."""

import json
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vipllava_jax.evaluation.batches import Answer, CaseBatch, CaseBatches, group_cases
from vipllava_jax.evaluation.cases import VIP_BENCH, Case, Cases, read_cases
from vipllava_jax.evaluation.engine_answers import engine_answers
from vipllava_jax.evaluation.engine_choice import Engines, check_engine, open_engine
from vipllava_jax.evaluation.joined import Alone, Joined
from vipllava_jax.evaluation.outputs import check_outputs
from vipllava_jax.evaluation.scores import Score, count_right, is_right
from vipllava_jax.files import write_text
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE
from vipllava_jax.sharding import mesh_of

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.evaluation.journal import Journal
    from vipllava_jax.generation.model import Model
    from vipllava_jax.model.vipllava import Params

CHOSEN = 'chosen'  # in the names of the scores of choices
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
    choose: bool = False,
    answers: str | os.PathLike[str] | None = None,
    about: Mapping[str, Any] | None = None,
    restart: bool = False,
    skip_broken: bool = False,
    progress: Progress | None = None,
    engine: 'Engine | bool | None' = None,
) -> Result:
    """Asks a model all questions of some files, or of rows as dicts, and counts the right answers.

    `images` is the folder of the pictures, by default that of each file. Answers are also counted separately
    for the values of each field in `by`; rows with the same value of a field in `together` count as one,
    which is right if all of them are. With `choose`, the likeliest option of each question is also found and
    counted. Answers are appended to the file `answers`; existing ones are not asked for again. `progress` is
    called with the number of answers and the total. `engine` says whether an engine answers, which has to
    start first: None decides by the number of questions, and one that is open is used and left open. Raises
    ValueError for broken rows and for a file of answers with other settings; `about`, a description of the
    model, is one of them.
    """
    mesh = mesh_of(model.params)
    joined = bool(mesh and mesh.is_multi_process)
    check_engine(engine is not None and engine is not False, joined, choose)
    files = [rows] if isinstance(rows, (str, os.PathLike)) else rows
    if answers is not None:
        inputs = [Path(file) for file in files if isinstance(file, (str, os.PathLike))]
        check_outputs({'answers': Path(answers)}, inputs)
    cases = read_cases(rows, images, by=by, together=together, skip_broken=skip_broken)
    options: dict[str, Any] = dict(template=template, fit=fit, max_new_tokens=max_new_tokens, choose=choose)
    batches = group_cases(cases, model.processor, model.cfg, batch=batch, skip_broken=skip_broken, **options)
    settings = {**(about or {}), **answer_settings(cases, **options)}
    how: dict[str, Any] = dict(restart=restart, progress=progress, joined=joined)
    if not (joined or choose):
        how['engine'] = partial(open_engine, model._replace(processor=batches.processor), engine)
    return run(batches, lambda _: model.params, answers, settings, **how)


def answer_settings(
    cases: Cases,
    *,
    template: str,
    fit: str | None,
    max_new_tokens: int | None,
    choose: bool,
    portable: bool = False,
) -> dict[str, Any]:
    """The settings on which answers depend, and a digest of the questions.

    A `portable` digest does not depend on the folders of the files.
    """
    data = cases.portable_digest if portable else cases.digest
    asked = {'template': template, 'fit': fit, 'max_new_tokens': max_new_tokens}
    return {**asked, 'choose': choose or None, 'data': data}  # None as in files of earlier versions


def run(
    batches: CaseBatches,
    load: Callable[[CaseBatch], 'Params'],
    answers: str | os.PathLike[str] | None,
    settings: Mapping[str, Any],
    *,
    restart: bool = False,
    progress: Progress | None = None,
    joined: bool = False,
    engine: Engines = lambda count: None,
) -> Result:
    """Answers the questions without an answer, and counts.

    If there are any, `engine` is called with their number, and returns an engine that is closed when they are
    answered; None: they are answered in batches, with the weights that `load` returns. With `joined`, all
    processes that have joined call this: the first has the file, and all return the same result. After SIGINT
    or SIGTERM in one of them, all raise Stopped when the batch is done.
    """
    errors: list[str] = []
    processes = Joined() if joined else Alone()
    with (
        processes.journal(answers, dict(settings), restart, len(batches.cases.cases)) as journal,
        processes.signals(),
    ):
        if pending := batches.pending(journal.records):
            with engine(batches.total - len(journal.records)) or nullcontext() as opened:
                steps = (
                    _through(opened, batches, pending, journal)
                    if opened
                    else _in_batches(batches, load, pending, journal, processes)
                )
                with closing(steps):
                    for broken in steps:
                        errors += broken
                        if progress:
                            progress(len(journal.records), batches.total)
    return make_result(batches, journal.records, errors)


def _in_batches(
    batches: CaseBatches,
    load: Callable[[CaseBatch], 'Params'],
    pending: Sequence[CaseBatch],
    journal: 'Journal',
    processes: Alone | Joined,
) -> Generator[list[str]]:
    """Loads the weights, and writes the answers of one batch after another -> the errors after each step."""
    with processes.together():
        params = load(pending[0])
    yield []
    for prepared in processes.in_all_processes(batches.prepare_ahead(pending)):
        with processes.together():
            journal.append(_records(batches.cases, batches.answers(params, prepared)))
        yield prepared.errors


def _through(
    engine: 'Engine', batches: CaseBatches, pending: Sequence[CaseBatch], journal: 'Journal'
) -> Generator[list[str]]:
    """Writes the answers of an engine as they are complete -> the errors of cases that have none."""
    yield []
    for answers, errors in engine_answers(engine, batches, pending, {*journal.records}):
        journal.append(_records(batches.cases, answers))
        yield errors


def make_result(batches: CaseBatches, answers: Mapping[int, dict[str, Any]], errors: list[str]) -> Result:
    """Counts the right answers; `errors` are messages about pictures that cannot be read."""
    records = [answers[n] for n in sorted(answers)]
    scores = count_right(batches.cases, {record['n']: record['answer'] for record in records})
    if batches.choose:
        chosen = count_right(batches.cases, {record['n']: record['choice'] for record in records})
        named = [score._replace(group=f'{score.group}, {CHOSEN}') for score in chosen]
        scores = [score for pair in zip(scores, named, strict=True) for score in pair]
    return Result(
        scores,
        records,
        [*batches.cases.errors, *batches.errors, *errors],
        batches.cases.left_out + batches.left_out + len(errors),
        sum(not record['finished'] for record in records),
    )


def _records(cases: Cases, answers: Iterable[Answer]) -> list[dict[str, Any]]:
    return [_record(cases.cases[answer.number], answer) for answer in answers]


def _record(case: Case, answer: Answer) -> dict[str, Any]:
    """A record of the file of answers."""
    verdict: dict[str, Any] = {}
    if case.accepted:
        verdict = {'accepted': [*case.accepted], 'right': is_right(answer.text, case.accepted)}
    if answer.scores:
        choice = case.options[answer.scores.index(max(answer.scores))]
        scores = [round(score, 4) for score in answer.scores]
        verdict |= {'choice': choice, 'choice_right': is_right(choice, case.accepted), 'scores': scores}
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
