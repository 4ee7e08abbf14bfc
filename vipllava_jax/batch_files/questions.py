"""Turns the rows of a batch into questions for an engine, or into errors of one line."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.batch_files.lines import Lines, PlainLines
from vipllava_jax.batch_files.names import NamedRow, is_request, is_vip_bench
from vipllava_jax.batch_files.pictures import inline_bytes, read_pictures
from vipllava_jax.batch_files.row_settings import row_settings
from vipllava_jax.data import vip_bench
from vipllava_jax.data.rows import raising_broken_row
from vipllava_jax.engine.question import Question
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.mark_fields import numbered, read_mark
from vipllava_jax.inputs.marks import MAX_MARKS, Mark
from vipllava_jax.inputs.pixels import FITS
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE, TEMPLATE_NAMES
from vipllava_jax.messages import brief, listed
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.served import Served

PLAIN = ('id', 'image', 'images', 'prompt', 'marks', 'template', 'fit', 'settings')
OF_VIP_BENCH = (*PLAIN, vip_bench.ID, vip_bench.TEXT, 'bboxes', 'segmentations')


class RowQuestion(NamedTuple):
    """The questions of a row, of which a request may have several, or what is wrong with the row."""

    id: str
    lines: Lines  # how its line is written
    questions: tuple[Question, ...] = ()
    error: Exception | None = None  # if there are no questions
    size: int = 0  # bytes of its pictures that lie in memory


@dataclass(frozen=True)
class QuestionMaker:
    """Makes the questions of a batch: where its pictures are, and what rows do not say themselves."""

    images: Path | None  # the folder of the pictures; None: rows must not name paths
    settings: GenerationSettings
    model: Model  # whose weights may be absent; that of requests
    template: str = DEFAULT_TEMPLATE
    fit: Any = None  # None: that of the checkpoint, and of ViP-Bench for its rows
    prompt: str | None = None
    marks: Sequence[str] = ()

    def __call__(self, named: NamedRow) -> RowQuestion:
        fields = named.fields
        if is_request(fields):
            return self._request(named)
        known, make = (OF_VIP_BENCH, self._vip_bench) if is_vip_bench(fields) else (PLAIN, self._plain)
        lines = PlainLines(
            named.id, {str(name): value for name, value in fields.items() if name not in known}
        )
        if named.error:
            return RowQuestion(named.id, lines, error=ValueError(named.error))
        try:
            with raising_broken_row('row'):
                question = make(fields, named.id)
        except ValueError as error:
            return RowQuestion(named.id, lines, error=_of_row(error))
        return RowQuestion(named.id, lines, (question,), size=inline_bytes(question.images))

    def _request(self, named: NamedRow) -> RowQuestion:
        """The questions of a request, with what this batch says where the request says nothing."""
        check_protocol()
        from vipllava_jax.batch_files.request_rows import RequestLines, read_request_row

        if named.error:
            return RowQuestion(named.id, RequestLines(named.id), error=ValueError(named.error))
        model = self.model._replace(settings=self.settings)
        served = Served('', model, 0, template=self.template, fit=self.fit)
        try:
            with raising_broken_row('row'):
                exchange = read_request_row(named.fields, named.id, served, self.images)
        except (ValueError, ApiError) as error:
            fault = _of_row(error) if isinstance(error, ValueError) else error
            return RowQuestion(named.id, RequestLines(named.id), error=fault)
        pictures = {id(picture): picture for question in exchange.questions for picture in question.images}
        lines, size = RequestLines(named.id, exchange), inline_bytes(pictures.values())
        return RowQuestion(named.id, lines, exchange.questions, size=size)

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


def check_protocol() -> None:
    """Raises ImportError, with advice, if the packages that read requests are not installed."""
    if importlib.util.find_spec('msgspec') is None:
        raise ImportError("rows with custom_id need msgspec: pip install 'vipllava-jax[serve]'")


def _of_row(error: ValueError) -> ValueError:
    """The same error without the location, which the id of the row says."""
    return ValueError(str(error).removeprefix('row: '))


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
