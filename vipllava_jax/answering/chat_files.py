"""Chats in JSON files, with their images; a file that is read may come from a stranger."""

import base64
import binascii
import io
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vipllava_jax.answering.chat_turns import Exchange, Question, check_question
from vipllava_jax.files import check_encoding, check_output, parse_bounded_json, read_bytes, replacing
from vipllava_jax.inputs.images import open_image
from vipllava_jax.inputs.pixels import FITS
from vipllava_jax.inputs.prompts import TEMPLATE_NAMES
from vipllava_jax.json_fields import Fields
from vipllava_jax.messages import amount, brief, printable

FORMAT, VERSION = 'vipllava chat', 1
HEAD = f'{{\n "format": "{FORMAT}",'.encode()  # how a file begins that may be replaced
MAX_BYTES = 256 << 20
MAX_PARTS = 1 << 20  # brackets and commas: so many values take at most 100 MB
MAX_TURNS = 10_000
MAX_MARKS = 10_000  # the maximum per question
MAX_TEXT = 4 << 20  # characters of all turns, more than any context holds
MAX_PIXELS = 1 << 28  # of all images; they take 3 bytes each
CHAT = ('format', 'version', 'system', 'template', 'fit', 'turns')
TURN = ('question', 'images', 'marks', 'answer', 'finish_reason', 'retries')
REASONS = ('', 'stop', 'length', 'time')
PNG = b'\x89PNG\r\n\x1a\n'


class SavedChat(NamedTuple):
    """What a file holds of a chat: all but the model and the settings."""

    system: str | None
    template: str
    fit: Any
    exchanges: tuple[Exchange, ...]


def write_chat(path: Path, chat: SavedChat, model: Path) -> None:
    """Replaces the file with a chat, atomically; `model` is the folder of the model.

    Raises ValueError if the path is a file in that folder or something else than a saved chat, or if
    `read_chat` would refuse the chat as too large, and OSError if it cannot be written.
    """
    check_output(path, [model])
    if path.is_file() and path.stat().st_size:
        with open(path, 'rb') as file:
            if file.read(len(HEAD)) != HEAD:
                raise ValueError(f'{path}: exists and is not a saved chat; choose another path')
    head = {'format': FORMAT, 'version': VERSION}
    fields = {'system': chat.system, 'template': chat.template, 'fit': chat.fit}
    turns = [_turn_fields(exchange) for exchange in chat.exchanges]
    data = json.dumps({**head, **fields, 'turns': turns}, indent=1).encode() + b'\n'
    if reason := _excess(data) or _excess_of(chat):
        raise ValueError(f'the chat is too large to be loaded again ({reason}): undo the last questions')
    with replacing(path) as fresh:
        fresh.write_bytes(data)


def _turn_fields(exchange: Exchange) -> dict[str, Any]:
    text, images, marks = exchange.question
    encoded = [base64.b64encode(_png(image)).decode() for image in images]
    question = {'question': text, 'images': encoded, 'marks': [*marks], 'answer': exchange.answer}
    return {**question, 'finish_reason': exchange.finish_reason, 'retries': exchange.retries}


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, 'PNG', compress_level=1)  # the highest takes ten times as long, for a tenth less
    return content.getvalue()


def _excess(data: bytes) -> str | None:
    """Why the content of a file is too large, or None."""
    # Other characters than those of ASCII, which `write_chat` escapes, take four bytes in memory.
    if len(data) > (MAX_BYTES if data.isascii() else MAX_BYTES // 8):
        return f'it has {amount(len(data))}'
    parts = sum(data.count(mark) for mark in (b',', b'[', b'{'))
    return f'it has {parts} commas and brackets' if parts > MAX_PARTS else None


def _excess_of(chat: SavedChat) -> str | None:
    """Why a chat is too large, or None."""
    texts = [chat.system or '', *(text for (q, answer, *_) in chat.exchanges for text in (q.text, answer))]
    found = {
        'turns': (len(chat.exchanges), MAX_TURNS),
        'characters': (sum(map(len, texts)), MAX_TEXT),
        'pixels': (
            _pixels(image for exchange in chat.exchanges for image in exchange.question.images),
            MAX_PIXELS,
        ),
    }
    return next((f'it has {n} {name}, at most {most}' for name, (n, most) in found.items() if n > most), None)


def _pixels(images: Iterable[Image.Image]) -> int:
    return sum(math.prod(image.size) for image in images)


def read_chat(path: Path) -> SavedChat:
    """The chat in a file; ValueError, in one line with the path, if it is too large or something else."""
    data = read_bytes(path, MAX_BYTES)
    check_encoding(path, data[:4])
    if not data.lstrip().startswith(b'{'):
        raise ValueError(f'{printable(str(path))}: is not a saved chat')
    try:
        if reason := _excess(data):
            raise ValueError(f'too large for a chat ({reason})')
        chat = _chat(parse_bounded_json(data, MAX_TURNS + 1))
        if reason := _excess_of(chat):
            raise ValueError(f'too large for a chat ({reason})')
        return chat
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(printable(f'{path}: is damaged or cut short: {error}')) from None
    except (ValueError, TypeError) as error:
        raise ValueError(printable(f'{path}: {error}')) from None


def _chat(data: Mapping[str, Any]) -> SavedChat:
    if data.get('format') != FORMAT:
        raise ValueError(f'format is {brief(data.get("format"))}, expected {FORMAT!r}: give a saved chat')
    if data.get('version') != VERSION:
        raise ValueError(
            f'version is {brief(data.get("version"))}, and this release reads {VERSION}: update vipllava-jax'
        )
    fields = _known(Fields(data), CHAT)
    exchanges: list[Exchange] = []
    images: list[Image.Image] = []
    for n, turn in enumerate(_entries(fields, 'turns', dict, MAX_TURNS)):
        exchange = _exchange(Fields(turn, f'turns[{n}].'), images)
        exchanges.append(exchange)
        images += exchange.question.images
    system = None if data.get('system') is None else _text(fields, 'system')
    fit = None if data.get('fit') is None else _choice(fields, 'fit', FITS)
    return SavedChat(system, _choice(fields, 'template', TEMPLATE_NAMES), fit, tuple(exchanges))


def _exchange(fields: Fields, before: Sequence[Image.Image]) -> Exchange:
    """A question, which follows others with these images, and its answer."""
    _known(fields, TURN)
    images: list[Image.Image] = []
    for n, text in enumerate(_entries(fields, 'images', str, MAX_MARKS)):
        images.append(_image(text, f'{fields.where}images[{n}]', [*before, *images]))
    marks = _entries(fields, 'marks', str, MAX_MARKS)
    question = Question(_text(fields, 'question'), tuple(images), tuple(marks))
    try:
        check_question(question, before)
    except ValueError as error:
        raise ValueError(f'{fields.where[:-1]}: {error}') from None
    reason = _choice(fields, 'finish_reason', REASONS)
    return Exchange(question, _text(fields, 'answer'), reason, fields.number('retries', 0))


def _image(text: str, where: str, before: Sequence[Image.Image]) -> Image.Image:
    """The image in base64; its size is read before it is decoded."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        raise ValueError(f'{where}: expected base64') from None
    if not data.startswith(PNG) or len(data) < 24:
        raise ValueError(f'{where}: expected a PNG picture')
    pixels = math.prod(struct.unpack('>II', data[16:24])) + _pixels(before)
    if pixels > MAX_PIXELS:
        raise ValueError(f'{where}: more than {MAX_PIXELS >> 20} million pixels in all images')
    return open_image(data, where)


def _known(fields: Fields, names: Sequence[str]) -> Fields:
    """The same fields; ValueError, naming it, for one that is not among the names."""
    for name in fields.data:
        if name not in names:
            raise ValueError(f'{fields.where}{brief(name)[1:-1]}: unknown, expected {", ".join(names)}')
    return fields


def _text(fields: Fields, name: str) -> str:
    value = fields.data.get(name)
    if not isinstance(value, str):
        raise fields.error(name, value, 'a string')
    if not value.isprintable() and any('\ud800' <= c <= '\udfff' for c in value):
        raise ValueError(f'{fields.where}{name}: is not valid Unicode')
    return value


def _choice(fields: Fields, name: str, choices: Sequence[Any]) -> Any:
    value = fields.data.get(name)
    if not isinstance(value, str) or value not in choices:
        raise fields.error(name, value, ' or '.join(map(repr, choices)))
    return value


def _entries(fields: Fields, name: str, kind: type, most: int) -> list[Any]:
    """A list of at most so many strings, or objects."""
    value = fields.data.get(name)
    if not isinstance(value, list) or len(value) > most or not all(isinstance(v, kind) for v in value):
        of = 'strings' if kind is str else 'objects'
        raise fields.error(name, value, f'a list of at most {most} {of}')
    return value
