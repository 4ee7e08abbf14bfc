"""Reads the messages of a chat: the turns, and the pictures with their marks where they stand."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vipllava_jax.answering.prompts import insert_phrases
from vipllava_jax.inputs.chat_messages import without_leading_images
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.inputs.mark_fields import numbered
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.prompts import IMAGE_TOKEN, Turn
from vipllava_jax.messages import listed
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.parts import ImagePart, Message, TextPart
from vipllava_jax.protocol.pictures import read_marks, read_picture
from vipllava_jax.protocol.served import Limits

SYSTEM = ('system', 'developer')


class Conversation(NamedTuple):
    """What a question is made of."""

    turns: list[Turn]  # with a placeholder for each picture that is not where the template puts it
    images: list[ImageSource]
    marks: list[Mark | str]
    fit: Fit | None


def read_conversation(
    messages: Sequence[Message], limits: Limits, fetched: Mapping[str, ImageSource]
) -> Conversation:
    """Messages -> the conversation, with the phrases of marks in place of {mark}, {mark2}, … in its texts.

    Marks are counted in the order of the pictures, across all messages. Raises ApiError.
    """
    _check_roles(messages)
    pictures = pictures_in(messages)
    _check_numbers([part for _, part in pictures], limits)
    images = [
        read_picture(part.image_url.url, f'{at}.image_url.url', limits, fetched) for at, part in pictures
    ]
    marks = [read_marks(part.visual_prompts or (), f'{at}.visual_prompts') for at, part in pictures]
    in_order = [mark for of_picture in marks for mark in of_picture]
    turns = [_turn(message, f'messages[{m}]', in_order) for m, message in enumerate(messages)]
    return Conversation(
        without_leading_images(_with_one_system_turn(turns), len(images)),
        images,
        [numbered(image, mark) for image, of_picture in enumerate(marks) for mark in of_picture],
        _fit([part for _, part in pictures]),
    )


def pictures_in(messages: Sequence[Message]) -> list[tuple[str, ImagePart]]:
    """The pictures of all messages in order, with their paths in the request."""
    return [
        (f'messages[{m}].content[{p}]', part)
        for m, message in enumerate(messages)
        for p, part in message.pictures()
    ]


def checked_text(text: str, name: str) -> str:
    """The same text; ApiError if it says <image>, which would become another picture in the prompt."""
    if IMAGE_TOKEN in text:
        raise ApiError(
            400,
            f'{name} says {IMAGE_TOKEN}, which stands for a picture in prompts: write it differently',
            name,
        )
    return text


def _check_roles(messages: Sequence[Message]) -> None:
    """Raises ApiError for an order of messages that the templates do not have."""
    roles = [message.role for message in messages]
    if roles[-1] != 'user':
        name = f'messages[{len(roles) - 1}].role'
        raise ApiError(400, f'{name} is {roles[-1]}: the last message is one of the user', name)
    begin = next(m for m, role in enumerate(roles) if role not in SYSTEM)
    for m, message in enumerate(messages):
        name = f'messages[{m}]'
        if message.role in SYSTEM and m > begin:
            raise ApiError(400, f'{name}.role is {message.role}: put it before the other messages', name)
        if message.role != 'user' and any(message.pictures()):
            raise ApiError(400, f'{name} has a picture, but only messages of the user may', f'{name}.content')


def _check_numbers(pictures: Sequence[ImagePart], limits: Limits) -> None:
    """Raises ApiError for more pictures or marks than a request may have."""
    marks = sum(len(part.visual_prompts or ()) for part in pictures)
    for count, most, what in ((len(pictures), limits.pictures, 'pictures'), (marks, limits.marks, 'marks')):
        if count > most:
            raise ApiError(400, f'messages have {count} {what}, expected at most {most}', 'messages')


def _fit(pictures: Sequence[ImagePart]) -> Fit | None:
    """How the pictures are made square, which is the same for all of them."""
    given = [*dict.fromkeys(part.fit for part in pictures if part.fit is not None)]
    if len(given) > 1:
        raise ApiError(
            400, f'fit is {listed(given, 3)}: choose one for all pictures of a request', 'messages'
        )
    return given[0] if given else None


def _turn(message: Message, name: str, marks: Sequence[Mark]) -> Turn:
    """A message as a turn, whose parts are joined by line breaks."""
    role = 'system' if message.role in SYSTEM else message.role
    if isinstance(message.content, str):
        return Turn(role, _text(message.content, role, f'{name}.content', marks))
    parts = [
        _text(part.text, role, f'{name}.content[{p}].text', marks)
        if isinstance(part, TextPart)
        else IMAGE_TOKEN
        for p, part in enumerate(message.content)
    ]
    return Turn(role, '\n'.join(parts))


def _text(text: str, role: str, name: str, marks: Sequence[Mark]) -> str:
    """A text with the phrases of marks; what the assistant has said stays as it is."""
    checked_text(text, name)
    if role == 'assistant':
        return text
    try:
        return insert_phrases(text, marks, name, 'add it to the visual_prompts of a picture')
    except ValueError as error:
        raise ApiError(400, str(error), name) from None


def _with_one_system_turn(turns: list[Turn]) -> list[Turn]:
    """Turns whose texts of the system, which come first, are one turn."""
    texts = [turn.text for turn in turns if turn.role == 'system']
    others = [turn for turn in turns if turn.role != 'system']
    return [Turn('system', '\n'.join(texts)), *others] if texts else others
