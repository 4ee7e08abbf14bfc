"""/v1/regions: one question about each region of a picture."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vipllava_jax.answering.prompts import insert_phrases
from vipllava_jax.answering.region_marks import check_options, region_mark, told_apart
from vipllava_jax.engine.pieces import Piece
from vipllava_jax.engine.question import Question
from vipllava_jax.engine.reply import Reply
from vipllava_jax.generation.setting_checks import later_seed
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.inputs.marks import COLORS, Mark
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.protocol.answer_formats import answer_format
from vipllava_jax.protocol.context import prompt_ids, template_of, with_room
from vipllava_jax.protocol.conversation import checked_text
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.exchange import Exchange
from vipllava_jax.protocol.models import check_model_name
from vipllava_jax.protocol.pictures import NOTHING_FETCHED, picture_size, read_picture
from vipllava_jax.protocol.requests import RegionsRequest
from vipllava_jax.protocol.responses import finish_reason, usage, warnings
from vipllava_jax.protocol.served import Served
from vipllava_jax.protocol.settings import generation_settings, params_of, token_limit

MAX_MASK_PIXELS = 100_000_000  # of all masks of a request, which take seconds to decode
MAX_CORNERS = 200_000  # of all outlines of a request, which a mask has many of


@dataclass
class RegionsExchange(Exchange):
    """A request to /v1/regions, with a question about each region, and how their answers are written."""

    def body(self, replies: Sequence[Reply]) -> dict[str, Any]:
        answers = [reply.result(timeout=0)[0] for reply in replies]
        data = [
            {'index': n, 'answer': answer.text, 'finish_reason': finish_reason(answer.finish_reason)}
            for n, answer in enumerate(answers)
        ]
        return {**self.head('regions'), 'data': data, 'usage': usage(replies), **warnings(replies)}

    def events(self, index: int, reply: Reply, piece: Piece) -> list[dict[str, Any]]:
        if not (piece.text or piece.finish_reason):
            return []
        event = {
            **self.head('regions.chunk'),
            'index': index,
            'delta': piece.text,
            'finish_reason': finish_reason(piece.finish_reason),
        }
        return [event | warnings([reply]) if piece.finish_reason else event]

    def closing(self, replies: Sequence[Reply]) -> list[dict[str, Any]]:
        return [{**self.head('regions.chunk'), 'usage': usage(replies)}] if self.include_usage else []


def regions_exchange(
    request: RegionsRequest, served: Served, id: str, fetched: Mapping[str, ImageSource] = NOTHING_FETCHED
) -> RegionsExchange:
    """A request -> its exchange; `id` is that of the request, and `fetched` has pictures by their URLs.

    Raises ApiError.
    """
    check_model_name(request.model, served)
    _check_options(request, served)
    picture = read_picture(request.image, 'image', served.limits, fetched)
    marks = _read_regions(request, picture_size(picture, 'image', served.limits))
    together = request.mode == 'together'
    rows = len(COLORS) if together else 1
    groups = [marks[start : start + rows] for start in range(0, len(marks), rows)]
    drawn = [told_apart(group) if together else group for group in groups]
    prompts = _Prompts(request, served)
    settings = generation_settings(request, served)
    expected_format = answer_format(request)
    questions = [
        Question(
            [Turn('user', prompts.text(mark))],
            (picture,),
            tuple(group),
            _of_region(prompts.with_room(settings, mark), n),
            prompts.template,
            request.fit or served.fit,
            id,
            answer_format=expected_format,
            priority=request.priority or 0,
        )
        for n, (group, mark) in enumerate((group, mark) for group in drawn for mark in group)
    ]
    return RegionsExchange(
        f'regions-{id}',
        served.name,
        tuple(questions),
        bool(request.stream),
        params_of(request, 'question', 'image'),
        request.wants_usage,
    )


class _Prompts:
    """The prompts about regions, of which few differ."""

    def __init__(self, request: RegionsRequest, served: Served) -> None:
        self.request, self.served = request, served
        self.template = template_of(request.template, served)
        self.lengths: dict[str, int] = {}  # tokens of each prompt

    def text(self, mark: Mark) -> str:
        return insert_phrases(self.request.question, [mark])

    def with_room(self, settings: GenerationSettings, mark: Mark) -> GenerationSettings:
        """The settings with the most tokens of the answer about a region."""
        text = self.text(mark)
        if text not in self.lengths:
            ids = prompt_ids([Turn('user', text)], 1, self.template, self.served, 'question')
            self.lengths[text] = len(ids)
        limit = token_limit(self.request)
        return with_room(settings, self.lengths[text], limit, self.served, 'question')


def _check_options(request: RegionsRequest, served: Served) -> None:
    """Raises ApiError for a question without {mark}, an unknown shape, and too many regions."""
    checked_text(request.question, 'question')
    if len(request.regions) > (most := served.limits.regions):
        raise ApiError(400, f'there are {len(request.regions)} regions, expected at most {most}', 'regions')
    try:
        check_options(request.question, request.mode or 'separate', request.shape or 'rectangle')
    except ValueError as error:
        name = 'shape' if 'unknown shape' in str(error) else 'question'
        raise ApiError(400, str(error), name) from None


def _read_regions(request: RegionsRequest, size: tuple[int, int]) -> list[Mark]:
    """The marks of the regions of a picture of (width, height) pixels; ApiError names an invalid one."""
    masks = sum(_has_mask(region) for region in request.regions)
    if masks * size[0] * size[1] > MAX_MASK_PIXELS:
        message = f'the {masks} masks of regions have more than {MAX_MASK_PIXELS:,} pixels in all'
        raise ApiError(400, f'{message}: send fewer, or polygons', 'regions')
    marks, corners = [], 0
    for n, region in enumerate(request.regions):
        name = f'regions[{n}]'
        try:
            marks.append(region_mark(region, request.shape or 'rectangle', size))
        except (ValueError, TypeError, OverflowError) as error:
            raise ApiError(400, f'{name}: {error}', name) from None
        corners += sum(map(len, marks[-1].polygon or ()))
        if corners > MAX_CORNERS:
            raise ApiError(400, f'the outlines of regions have more than {MAX_CORNERS:,} corners', 'regions')
    return marks


def _has_mask(region: Any) -> bool:
    """Whether a region is an annotation with a mask in run lengths."""
    return isinstance(region, dict) and isinstance(region.get('segmentation'), dict)


def _of_region(settings: GenerationSettings, n: int) -> GenerationSettings:
    """The settings for region n, whose seed is the n-th after that of the request."""
    if not isinstance(settings.seed, int):
        return settings
    return dataclasses.replace(settings, seed=later_seed(settings.seed, n))
