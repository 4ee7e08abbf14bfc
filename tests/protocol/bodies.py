"""Requests of tests, with as little in them as there must be."""

import base64
import json

from tests.engine.pictures import picture, png
from vipllava_jax.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    RegionsRequest,
    TokenizeRequest,
    read_request,
)

PNG = png(picture())  # 60x50
URI = 'data:image/png;base64,' + base64.b64encode(PNG).decode()
HELLO = [{'role': 'user', 'content': 'Hello?'}]
POINT = {'shape': 'point', 'point': [3, 4], 'color': 'lime'}


def read(kind, **fields):
    return read_request(json.dumps(fields).encode(), kind)[0]


def chat(**fields) -> ChatRequest:
    return read(ChatRequest, **{'model': 'vip', 'messages': HELLO, **fields})


def user(*parts) -> dict:
    """A message of the user, of texts and parts."""
    return {'role': 'user', 'content': [text(part) if isinstance(part, str) else part for part in parts]}


def text(words) -> dict:
    return {'type': 'text', 'text': words}


def image(url=URI, **fields) -> dict:
    return {'type': 'image_url', 'image_url': {'url': url}, **fields}


def completion(**fields) -> CompletionRequest:
    return read(CompletionRequest, **{'model': 'vip', 'prompt': 'Once', **fields})


def regions(**fields) -> RegionsRequest:
    defaults = {
        'model': 'vip',
        'image': URI,
        'regions': [[1, 2, 30, 40], POINT],
        'question': 'What is {mark}?',
    }
    return read(RegionsRequest, **defaults | fields)


def tokens(**fields) -> TokenizeRequest:
    return read(TokenizeRequest, **fields)
