"""/v1/preview: what the model would see of a picture with marks, without asking it anything."""

from collections.abc import Sequence
from typing import Any

from vipllava_jax.engine.question import Question
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.pictures import NOTHING_FETCHED, picture_size, read_marks, read_picture
from vipllava_jax.protocol.requests import PreviewRequest
from vipllava_jax.protocol.responses import picture_uri
from vipllava_jax.protocol.served import Served


def preview_question(request: PreviewRequest, served: Served) -> Question:
    """A request -> a question that has its picture, marks and fit, and no words; raises ApiError."""
    marks, limits = request.visual_prompts or (), served.limits
    if len(marks) > limits.marks:
        raise ApiError(
            400, f'there are {len(marks)} marks, expected at most {limits.marks}', 'visual_prompts'
        )
    picture = read_picture(request.image, 'image', limits, NOTHING_FETCHED)
    size = picture_size(picture, 'image', limits)
    drawn = tuple(read_marks(marks, 'visual_prompts'))
    for n, mark in enumerate(drawn):
        try:
            mark.region(size)
        except ValueError as error:
            name = f'visual_prompts[{n}]'
            raise ApiError(400, f'{name}: {error}', name) from None
    return Question('', (picture,), drawn, fit=request.fit or served.fit)


def preview_body(pixels: Any, warnings: Sequence[str]) -> dict[str, Any]:
    """Pictures 1hw3 uint8 as the model takes them, and what was cut off -> the response."""
    return {'image': picture_uri(pixels), 'warnings': [*warnings]}
