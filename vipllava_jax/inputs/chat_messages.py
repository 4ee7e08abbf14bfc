"""Reads conversations in the format of OpenAI's chat API.

A message may come from a stranger, so nothing in it is opened: an image in it is a data URI, or a placeholder
for one of the images that the caller passes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vipllava_jax.inputs.data_uris import decode_data_uri, is_data_uri
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.inputs.prompts import IMAGE_TOKEN, ROLES, Turn
from vipllava_jax.messages import brief

PARTS = ('text', 'image', 'image_url')


def read_messages(
    messages: Sequence[Mapping[str, Any]], images: Sequence[ImageSource]
) -> tuple[list[Turn], list[ImageSource]]:
    """Messages `{"role", "content"}` and the images passed with them -> Turns, and the images in their order.

    A content is a string or a list of parts, which are joined by line breaks: `{"type": "text", "text": …}`,
    `{"type": "image_url", "image_url": {"url": "data:…"}}`, and `{"type": "image"}` for the next of `images`.
    Raises ValueError, with the path of the field, for anything else.
    """
    turns: list[Turn] = []
    found: list[ImageSource | None] = []  # None: one of `images`
    for n, message in enumerate(messages):
        role, content = _role_and_content(message, f'messages[{n}]')
        text, part_images = _read_content(content, f'messages[{n}].content')
        turns.append(Turn(role, text))
        found += part_images
    if not found:  # the images come first, or where the texts have <image>
        return turns, list(images)
    if sum(turn.text.count(IMAGE_TOKEN) for turn in turns) != len(found):
        raise ValueError(f'messages have both image parts and {IMAGE_TOKEN} in a text: use image parts alone')
    expected = found.count(None)
    if len(images) != expected:
        raise ValueError(
            f'messages have {expected} {{"type": "image"}} parts for {len(images)} image(s): '
            'give one part for each image'
        )
    remaining = iter(images)
    sources = [next(remaining) if source is None else source for source in found]
    return without_leading_images(turns, len(sources)), sources


def without_leading_images(turns: list[Turn], count: int) -> list[Turn]:
    """Removes placeholders that are where the template puts images that a text does not place."""
    first = next((n for n, turn in enumerate(turns) if turn.role == 'user'), 0)
    leading = f'{IMAGE_TOKEN}\n' * count
    text = turns[first].text
    if text.startswith(leading):
        turns[first] = Turn(turns[first].role, text.removeprefix(leading))
    return turns


def _role_and_content(message: Mapping[str, Any], path: str) -> tuple[str, Any]:
    _refuse_other_keys(message, ('role', 'content'), path)
    role = message.get('role')
    if role not in ROLES:
        raise ValueError(f'{path}.role: expected {", ".join(ROLES)}, found {brief(role)}')
    return role, message.get('content')


def _read_content(content: Any, path: str) -> tuple[str, list[ImageSource | None]]:
    """The text, with `<image>` for each image part, and the images; None for one of the caller's."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, (list, tuple)) or not content:
        raise ValueError(f'{path}: expected a string or a list of parts, found {brief(content)}')
    texts: list[str] = []
    images: list[ImageSource | None] = []
    for n, part in enumerate(content):
        at = f'{path}[{n}]'
        part_type = part.get('type') if isinstance(part, Mapping) else None
        if part_type not in PARTS:
            found = brief(part if part_type is None else part_type)
            raise ValueError(f'{at}: expected a part of type {", ".join(PARTS)}, found {found}')
        if part_type == 'text':
            _refuse_other_keys(part, ('type', 'text'), at)
            if not isinstance(part.get('text'), str):
                raise ValueError(f'{at}.text: expected a string, found {brief(part.get("text"))}')
            texts.append(part['text'])
            continue
        texts.append(IMAGE_TOKEN)
        if part_type == 'image_url':
            images.append(_read_image_url(part, at))
        else:
            _refuse_other_keys(part, ('type',), at)
            images.append(None)
    return '\n'.join(texts), images


def _read_image_url(part: Mapping[str, Any], path: str) -> bytes:
    """The bytes in the data URI of a part; `detail` is ignored, as the model has one resolution."""
    _refuse_other_keys(part, ('type', 'image_url'), path)
    value, path = part.get('image_url'), f'{path}.image_url'
    if not isinstance(value, Mapping) or not isinstance(value.get('url'), str):
        raise ValueError(f'{path}: expected {{"url": "data:image/…;base64,…"}}, found {brief(value)}')
    _refuse_other_keys(value, ('url', 'detail'), path)
    url = value['url']
    if not is_data_uri(url) or ',' not in url:
        raise ValueError(
            f'{path}.url: expected a data URI, found {brief(url)}: '
            'open the image and pass it in images, with a part {"type": "image"}'
        )
    return decode_data_uri(url, f'{path}.url')


def _refuse_other_keys(value: Mapping[str, Any], known: Sequence[str], path: str) -> None:
    for key in value:
        if key not in known and value[key] is not None:
            raise ValueError(f'{path}: {brief(key)} is not supported, only {", ".join(known)}')
