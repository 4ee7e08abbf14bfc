"""Reads the prompts and images that callers pass in many forms."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vipllava_jax.inputs.chat_messages import read_messages
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.inputs.prompts import Turn
from vipllava_jax.messages import brief

FORMS = 'a string, a list of Turns, or a list of messages {"role", "content"}'


class Conversation(NamedTuple):
    """The turns of one prompt, and its images in the order of their placeholders."""

    turns: Sequence[Turn]
    images: list[ImageSource]


def read_conversations(prompts: Any, images: Any) -> list[Conversation]:
    """A prompt or a list of prompts, and their images -> a conversation for each.

    Raises ValueError, naming the row, if they have another form.
    """
    single = _is_prompt(prompts)
    if not single and (not isinstance(prompts, (list, tuple)) or not prompts or isinstance(prompts, Turn)):
        raise ValueError(f'expected a prompt or a list of prompts, found {brief(prompts)}')
    rows = [prompts] if single else prompts
    sources = [_read_images(images)] if single else _read_rows_of_images(images, len(rows))
    conversations = []
    for row, (prompt, row_images) in enumerate(zip(rows, sources, strict=True)):
        if not _is_prompt(prompt):
            raise ValueError(f'row {row}: a prompt is {FORMS}; found {brief(prompt)}')
        conversations.append(_read_prompt(prompt, row_images, row))
    return conversations


def _is_prompt(value: Any) -> bool:
    """Whether a value is one prompt."""
    if isinstance(value, str):
        return True
    if not isinstance(value, (list, tuple)) or not value:
        return False
    return any(all(isinstance(turn, form) for turn in value) for form in (Turn, Mapping))


def _read_prompt(prompt: Any, images: list[ImageSource], row: int) -> Conversation:
    if isinstance(prompt, str):
        return Conversation([Turn('user', prompt)], images)
    if isinstance(prompt[0], Turn):
        return Conversation(prompt, images)
    try:
        return Conversation(*read_messages(prompt, images))
    except ValueError as error:
        raise ValueError(f'row {row}: {error}') from None


def _read_rows_of_images(images: Any, count: int) -> list[list[ImageSource]]:
    """The images of each of `count` prompts."""
    if images is None:
        return [[] for _ in range(count)]
    if not isinstance(images, (list, tuple)) or len(images) != count:
        found = f'a list of {len(images)}' if isinstance(images, (list, tuple)) else 'a single image'
        raise ValueError(
            f'for a list of {count} prompts, images must be a list of {count}: '
            f'for each prompt an image, a list of images, or None; found {found}'
        )
    return [_read_images(entry) for entry in images]


def _read_images(images: Any) -> list[ImageSource]:
    """The images of one prompt."""
    row = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    if any(image is None or isinstance(image, (list, tuple)) for image in row):
        raise ValueError(
            'the images of one prompt are an image, a list of images, or None; found a list or None in a list'
        )
    return row
