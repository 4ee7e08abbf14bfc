"""Turns the rows of a batch into questions for an engine, or into errors of one line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.batch_files.ids import IdSet, unused_name
from vipllava_jax.batch_files.pictures import inline_bytes, read_pictures
from vipllava_jax.batch_files.row_settings import row_settings
from vipllava_jax.batch_files.row_text import parse_fields
from vipllava_jax.batch_files.sources import RawRow
from vipllava_jax.data import vip_bench
from vipllava_jax.data.row_offsets import MAX_ROW_BYTES
from vipllava_jax.data.row_values import check_values
from vipllava_jax.data.rows import raising_broken_row
from vipllava_jax.engine.question import Question
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.mark_fields import numbered, read_mark
from vipllava_jax.inputs.marks import MAX_MARKS, Mark
from vipllava_jax.inputs.pixels import FITS
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE, TEMPLATE_NAMES
from vipllava_jax.messages import brief, listed, printable

PLAIN = ('id', 'image', 'images', 'prompt', 'marks', 'template', 'fit', 'settings')
OF_VIP_BENCH = (*PLAIN, vip_bench.ID, vip_bench.TEXT, 'bboxes', 'segmentations')
MAX_ID = 1000  # characters


class NamedRow(NamedTuple):
    """A row with its id: fields, or what is wrong with it."""

    id: str
    fields: Mapping[str, Any]
    error: str = ''


class RowQuestion(NamedTuple):
    """A question, or what is wrong with its row."""

    id: str
    question: Question | None
    error: str
    row: dict[str, Any]  # the fields that are copied to the answer
    size: int = 0  # bytes of its pictures that lie in memory


@dataclass
class Names:
    """Gives every row an id that no earlier row has."""

    taken: IdSet = field(default_factory=IdSet)

    def of_text(self, row: RawRow) -> NamedRow:
        """A row as read, with its fields and its id."""
        if row.size > MAX_ROW_BYTES:
            error = f'has {row.size:,} bytes, expected at most {MAX_ROW_BYTES:,}'
            return self._unnamed(row.number, {}, error)
        try:
            fields = parse_fields(row.text)
        except ValueError as error_:
            return self._unnamed(row.number, {}, str(error_))
        return self._named(fields, row.number)

    def of_fields(self, fields: Any, number: int) -> NamedRow:
        """Row `number`, from 1, given by its fields, with its id."""
        if not isinstance(fields, Mapping):
            return self._unnamed(number, {}, f'expected a dict with a "prompt", found {brief(fields)}')
        try:
            check_values(dict(fields))
        except ValueError as error:
            return self._unnamed(number, {}, str(error))
        return self._named(fields, number)

    def _named(self, fields: Mapping[str, Any], number: int) -> NamedRow:
        """A row with its id; 'line N' if it has none, or an invalid one, or that of an earlier row."""
        try:
            id = _read_id(fields)
        except ValueError as error:
            return self._unnamed(number, fields, str(error))
        if id is None:
            return self._unnamed(number, fields)
        if not self.taken.add(id):
            return self._unnamed(
                number, fields, f'an earlier row has the same id, {brief(id)}: give it another'
            )
        return NamedRow(id, fields)

    def _unnamed(self, number: int, fields: Mapping[str, Any], error: str = '') -> NamedRow:
        return NamedRow(unused_name(f'line {number}', self.taken), fields, error)


def is_vip_bench(fields: Mapping[str, Any]) -> bool:
    """Whether a row is a question of ViP-Bench, not of the plain dialect."""
    return 'prompt' not in fields and vip_bench.is_vip_bench(fields)


def _read_id(fields: Mapping[str, Any]) -> str | None:
    """The id of a row, if it has one; ValueError for what is not one."""
    value = fields.get('id')
    if value is None and is_vip_bench(fields):
        value = vip_bench.question_id(fields)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f'"id" is {brief(value)}, expected a string')
    if len(str(value)) > MAX_ID:
        raise ValueError(f'"id" has {len(str(value)):,} characters, expected at most {MAX_ID:,}')
    return str(value)


@dataclass(frozen=True)
class QuestionMaker:
    """Makes the questions of a batch: where its pictures are, and what rows do not say themselves."""

    images: Path | None  # the folder of the pictures; None: rows must not name paths
    settings: GenerationSettings
    template: str = DEFAULT_TEMPLATE
    fit: Any = None  # None: that of the checkpoint, and of ViP-Bench for its rows
    prompt: str | None = None
    marks: Sequence[str] = ()

    def __call__(self, named: NamedRow) -> RowQuestion:
        fields = named.fields
        known, make = (OF_VIP_BENCH, self._vip_bench) if is_vip_bench(fields) else (PLAIN, self._plain)
        row = {str(name): value for name, value in fields.items() if name not in known}
        if named.error:
            return RowQuestion(named.id, None, printable(named.error), row)
        try:
            with raising_broken_row('row'):
                question = make(fields, named.id)
        except ValueError as error:
            return RowQuestion(named.id, None, printable(str(error).removeprefix('row: ')), row)
        return RowQuestion(named.id, question, '', row, inline_bytes(tuple(question.images)))

    def _plain(self, fields: Mapping[str, Any], id: str) -> Question:
        prompt = fields.get('prompt')
        prompt = self.prompt if prompt is None else prompt
        if prompt is None:
            found = listed([brief(str(name)) for name in fields], 5) or 'no fields'
            raise ValueError(f'there is no "prompt", but {found}: write the question there')
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f'"prompt" is {brief(prompt)}, expected a question')
        marks = read_marks(self.marks if fields.get('marks') is None else fields['marks'])
        return self._question(fields, id, prompt, read_pictures(fields, self.images), marks, self.fit, {})

    def _vip_bench(self, fields: Mapping[str, Any], id: str) -> Question:
        """A question as `vipllava eval` asks it."""
        pictures = read_pictures(fields, self.images)
        folder = self.images or Path()
        turns, marks = vip_bench.vip_bench_conversation(fields, len(pictures), folder)
        placed = [numbered(image, mark) for image, of_image in enumerate(marks) for mark in of_image]
        defaults = {'max_new_tokens': vip_bench.MAX_NEW_TOKENS}
        return self._question(fields, id, turns[:-1], pictures, placed, self.fit or vip_bench.FIT, defaults)

    def _question(
        self,
        fields: Mapping[str, Any],
        id: str,
        prompt: Any,
        pictures: Any,
        marks: Any,
        fit: Any,
        defaults: dict[str, Any],
    ) -> Question:
        template = self.template if fields.get('template') is None else fields['template']
        if not isinstance(template, str) or template not in TEMPLATE_NAMES:
            raise ValueError(f'"template" is {brief(template)}: choose {", ".join(TEMPLATE_NAMES)}')
        fit = fit if fields.get('fit') is None else fields['fit']
        if fit is not None and fit not in FITS:
            raise ValueError(f'"fit" is {brief(fit)}: choose {", ".join(FITS)}')
        settings = row_settings(self.settings, fields.get('settings'), id, defaults)
        return Question(prompt, pictures, tuple(marks), settings, template, fit, id)


def read_marks(value: Any) -> list[Mark | str]:
    """One mark or several, as text or as objects; ValueError names an invalid one."""
    several = value if isinstance(value, list | tuple) else [value]
    if len(several) > MAX_MARKS:
        raise ValueError(f'"marks" holds {len(several)} marks, expected at most {MAX_MARKS}')
    marks: list[Mark | str] = []
    for n, mark in enumerate(several):
        if isinstance(mark, Mark):
            marks.append(mark)
            continue
        try:
            marks.append(numbered(*read_mark(mark)))
        except ValueError as error:
            raise ValueError(f'"marks"[{n}]: {error}') from None
    return marks
