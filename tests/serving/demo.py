"""What is asked of the demo model: pictures of its world, with marks, in the parts of a message."""

import base64
import io
from typing import Any

from PIL import Image

from tests.serving.live import request_bytes
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.examples import example

NAME, KEY = 'demo', 'secret'
HEADERS = {'Content-Type': 'application/json', 'Authorization': f'Bearer {KEY}'}


def scene(number: int = 1) -> Image.Image:
    """A picture of the demo's world, without marks."""
    found = example(number).scene
    assert found
    return picture(found)


def encoded(image: Image.Image, format: str = 'PNG', **options: Any) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def data_uri(data: bytes, kind: str = 'png') -> str:
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def mark_on(number: int, thing: int = 0, color: str = 'red') -> dict[str, Any]:
    """A rectangle around a thing in a scene."""
    found = example(number).scene
    assert found
    it = found.things[thing]
    box = [it.x - it.radius, it.y - it.radius, it.x + it.radius, it.y + it.radius]
    return {'shape': 'rectangle', 'box': [round(side, 1) for side in box], 'color': color}


def image_part(number: int = 1, *marks: Any, **fields: Any) -> dict[str, Any]:
    """The part of a message with a scene, and marks on it."""
    url = data_uri(encoded(scene(number)))
    return {'type': 'image_url', 'image_url': {'url': url}, 'visual_prompts': [*marks], **fields}


def user(text: str, *images: dict[str, Any]) -> dict[str, Any]:
    """A message with pictures before its text."""
    return {'role': 'user', 'content': [*images, {'type': 'text', 'text': text}]}


def chat(text: str = 'What is a star?', *images: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The body of a request with one message."""
    return {'model': NAME, 'messages': [user(text, *images)], 'max_tokens': 24, **fields}


def sent(body: bytes) -> bytes:
    """A request with the key, as it is sent."""
    head = ''.join(f'{name}: {value}\r\n' for name, value in HEADERS.items())
    return request_bytes(body, f'{head}Content-Length: {len(body)}\r\n')
