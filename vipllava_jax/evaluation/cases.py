"""Turns rows into cases: the question, the marks and the accepted answers, checked in advance."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.data import vcr, vip_bench
from vipllava_jax.data.marking import MarkedConversation
from vipllava_jax.data.region_prompts import find_data_set, make_conversation
from vipllava_jax.data.row_checks import make_checked_conversation, raise_unless_skipped
from vipllava_jax.data.rows import BrokenRow, Row, index_rows, raising_broken_row, row_from_fields
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.messages import brief


class Task(NamedTuple):
    """How the questions of a data set are asked by default."""

    name: str
    fit: Fit | None = None  # None: that of the checkpoint
    max_new_tokens: int = 128  # the maximum per answer
    options: str | None = None  # the field with the options that a question calls A, B, …; None: it has none


GENERIC = Task('rows')
VIP_BENCH = Task('ViP-Bench', vip_bench.FIT, vip_bench.MAX_NEW_TOKENS)
VISUAL7W = Task('Visual7W', 'pad', options='bboxes')
ANSWERING = Task('VCR Q->A', 'squash', options='answer_choices')
REASONING = Task('VCR QA->R', 'squash', options='rationale_choices')
BOTH = 'VCR Q->AR'  # a set of two cases, right if both are
TASKS = {'v7w': VISUAL7W, 'pointQA_twice': Task('PointQA-LookTwice', 'pad'), 'vcr': ANSWERING}
NONE = '-'  # the group of rows without the field


class Case(NamedTuple):
    """A question, or a conversation that ends with one."""

    name: str  # the row's id, or its location
    where: str
    task: Task
    turns: tuple[Turn, ...]
    images: tuple[Path, ...]
    marks: tuple[tuple[Mark, ...], ...]  # one tuple per image
    accepted: tuple[str, ...] = ()  # empty if the right answers are not known here
    groups: tuple[tuple[str, ...], ...] = ()  # the row's values of each field in `by`
    sets: tuple[tuple[str, str], ...] = ()  # (field, value); a set is right if all of its cases are
    options: tuple[str, ...] = ()  # the answers from which the likeliest can be chosen

    @property
    def key(self) -> str:
        """The name, which for a row without an id is that of its file and line, here without the folder."""
        return self.name.rpartition('/')[2] if self.name == self.where else self.name

    @property
    def pictures(self) -> Any:
        """The pictures and their marks, hashable; equal for cases about the same pixels."""
        return self.images, self.marks


@dataclass(frozen=True)
class Cases:
    """The cases of some rows, in order."""

    cases: tuple[Case, ...]
    by: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()  # messages about the first rows that were left out
    left_out: int = 0

    @property
    def digest(self) -> str:
        """A hash of the questions, without the right answers."""
        return self._digest([case.name for case in self.cases])

    @property
    def portable_digest(self) -> str:
        """`digest`, but independent of the folders in which the files are."""
        return self._digest([case.key for case in self.cases])

    def _digest(self, names: Sequence[str]) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for name, case in zip(names, self.cases, strict=True):
            images = [path.name for path in case.images]
            marks = [[*map(str, marks)] for marks in case.marks]
            digest.update(json.dumps([name, case.task.name, case.turns, images, marks]).encode())
        return digest.hexdigest()


def read_cases(
    files: str | os.PathLike[str] | Iterable[Any],
    folder: str | os.PathLike[str] | None = None,
    *,
    by: Sequence[str] = (),
    together: Sequence[str] = (),
    skip_broken: bool = False,
) -> Cases:
    """The cases of files, each a JSON list or JSONL, or of rows as dicts; `folder` is that of the pictures.

    Broken rows, with file and line, are a ValueError or, with `skip_broken`, are left out. A field of `by` or
    `together` that no row has is a ValueError.
    """
    cases: list[Case] = []
    errors: list[str] = []
    names: set[str] = set()
    fields: set[str] = set()
    count = 0
    for count, read_row in enumerate(_row_readers(files, folder), 1):  # noqa: B007
        try:
            row = read_row()
            of_row = list(_cases_of(row, by, together))
            if of_row[0].task is VIP_BENCH and of_row[0].name in names:
                raise BrokenRow(f'{row.where}: "question_id" {of_row[0].name} occurs twice')
        except BrokenRow as error:
            errors.append(str(error))
            continue
        names.add(of_row[0].name)
        fields.update(row.fields)
        cases += of_row
    listed = raise_unless_skipped(errors, count, skip_broken)
    if missing := [name for name in (*by, *together) if name not in fields]:
        raise ValueError(f'no row has the field {missing[0]!r}: there are {", ".join(sorted(fields))}')
    return Cases(tuple(cases), tuple(by), listed, len(errors))


def check_options(cases: Cases) -> None:
    """Raises ValueError, naming the data set and the first case, if some cases have no options."""
    if case := next((case for case in cases.cases if not case.options), None):
        known = ', '.join(task.name for task in (VISUAL7W, ANSWERING, REASONING))
        raise ValueError(
            f'{case.where}: the questions of {case.task.name} have no options to choose from, which those of '
            f'{known} have: leave out --choose (choose=True), or the rows without options'
        )


def _row_readers(files: Any, folder: str | os.PathLike[str] | None) -> Iterator[Callable[[], Row]]:
    """A function for each row that reads it from its file or dict."""
    sources = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    images = None if folder is None else Path(folder)
    if sources and all(isinstance(source, dict) for source in sources):
        for n, fields in enumerate(sources):
            yield lambda n=n, fields=fields: row_from_fields(fields, f'row {n}', images or Path())  # type: ignore[misc]
        return
    if not all(isinstance(source, (str, os.PathLike)) for source in sources):
        raise ValueError('rows: expected paths of files, or a list of rows, each a dict')
    found = index_rows([Path(file) for file in sources], images)
    for i in range(len(found)):
        yield lambda i=i: found[i]  # type: ignore[misc]


def _cases_of(row: Row, by: Sequence[str], together: Sequence[str]) -> Iterator[Case]:
    """The cases of a row, two for one of VCR; BrokenRow if the row is invalid."""
    name = find_data_set(row.fields)
    forms: list[tuple[Task, Callable[[Row], MarkedConversation]]] = [
        (TASKS.get(name or '', GENERIC), _case_conversation)
    ]
    if name == 'vcr':
        forms.append((REASONING, lambda row: vcr.rationale_question(row.fields, row.folder)))
    elif vip_bench.is_vip_bench(row.fields):
        forms = [(VIP_BENCH, _vip_bench_conversation)]
    sets = [(field, text) for field in together for text in _texts(row.fields.get(field)) if text != NONE]
    if name == 'vcr':
        sets.append((BOTH, row.where))
    groups = tuple(_texts(row.fields.get(field)) for field in by)
    for task, make in forms:
        turns, marks = make_checked_conversation(row, make)
        case_name = _question_id(row) if task is VIP_BENCH else row.name
        options = vcr.LETTERS[: len(row.fields[task.options])] if task.options else ()
        yield Case(
            case_name,
            row.where,
            task,
            tuple(turns[:-1]),
            row.images,
            marks,
            () if task is VIP_BENCH else _accepted(row, turns[-1].text),
            groups,
            tuple(sets),
            tuple(options),
        )


def _question_id(row: Row) -> str:
    with raising_broken_row(row.where):
        return vip_bench.question_id(row.fields)


def _vip_bench_conversation(row: Row) -> MarkedConversation:
    return vip_bench.vip_bench_conversation(row.fields, len(row.images), row.folder)


def _case_conversation(row: Row) -> MarkedConversation:
    """The conversation, ending with the right answer, and the marks; ValueError without a question."""
    fields = row.fields
    if not find_data_set(fields) and not fields.get('conversations'):
        if fields.get('question') is None or fields.get('answer') is None:
            raise ValueError(
                'there is no question: expected "question" and "answer", or "conversations", or '
                '"question_id" and "text" as in ViP-Bench'
            )
        question, answer = fields['question'], _answers(fields['answer'])[0]
        turns = [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]
        fields = {**fields, 'id': None, 'conversations': turns}
    return make_conversation(fields, len(row.images), row.folder, None)


def _accepted(row: Row, answer: str) -> tuple[str, ...]:
    """The right answers."""
    if find_data_set(row.fields) or row.fields.get('conversations'):
        return (answer,)
    return _answers(row.fields['answer'])


def _answers(value: Any) -> tuple[str, ...]:
    answers = value if isinstance(value, list) else [value]
    if not answers or not all(map(_is_answer, answers)):
        raise ValueError(f'"answer" is {brief(value)}: expected a string or a number, or a list of those')
    return tuple(map(str, answers))


def _is_answer(value: Any) -> bool:
    """Whether a value is a string that is not blank, or a finite number."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(value: Any) -> tuple[str, ...]:
    """The values of a field, as strings."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(dict.fromkeys(map(str, values))) or (NONE,)
