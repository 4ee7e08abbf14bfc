"""Finds and renders the chat template in a checkpoint's files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.files import check_encoding, read_bytes, read_json
from vipllava_jax.inputs.rendering import RENDERER
from vipllava_jax.messages import CheckpointError, brief

SOURCES = (  # in the order in which transformers looks for a processor's template, the tokenizer's last
    'processor_config.json',
    'chat_template.json',
    'chat_template.jinja',
    'tokenizer_config.json',
)


class ChatTemplate(NamedTuple):
    """A checkpoint's chat template, in Jinja, and the special tokens it may use, such as bos_token."""

    source: str
    tokens: Mapping[str, str] = {}


def find(folder: Path, tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template of a folder, or None; CheckpointError names a file with an invalid one."""
    for name in SOURCES:
        path = folder / name
        if not path.exists():
            continue
        source = _default(path, _text(path) if path.suffix == '.jinja' else read_json(path))
        if source:
            return ChatTemplate(source, tokens)
    return None


def _text(path: Path) -> dict[str, str]:
    data = read_bytes(path)
    check_encoding(path, data[:4])
    try:
        return {'chat_template': data.decode('utf-8-sig')}
    except UnicodeDecodeError as error:
        raise CheckpointError(f'{path}: not UTF-8 ({error.reason} at byte {error.start})') from None


def _default(path: Path, fields: Mapping[str, Any]) -> str | None:
    """The template in a file: one text, or several by name, of which transformers uses 'default'."""
    given = fields.get('chat_template')
    if isinstance(given, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get('name'), str) for entry in given):
            raise CheckpointError(f'{path}: chat_template: expected a list of {{"name", "template"}} objects')
        given = {entry['name']: entry.get('template') for entry in given}
    if isinstance(given, dict):
        given = given.get('default')
    if given is not None and not isinstance(given, str):
        raise CheckpointError(f'{path}: chat_template: expected a text, found {brief(given)}')
    return given


def write(chat: ChatTemplate, messages: Sequence[Mapping[str, Any]], cue: bool) -> str:
    """Renders messages in the format of transformers; with `cue` the text ends with the start of an answer.

    Raises RenderingError if the template fails.
    """
    variables = {
        **chat.tokens,
        'messages': messages,
        'tools': None,
        'documents': None,
        'add_generation_prompt': cue,
    }
    return RENDERER.render(chat.source, variables)
