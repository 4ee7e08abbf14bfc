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


def find_chat_template(folder: Path, tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template of a folder, or None; CheckpointError names a file with an invalid one."""
    for name in SOURCES:
        path = folder / name
        if not path.exists():
            continue
        fields = _read_jinja(path) if path.suffix == '.jinja' else read_json(path)
        source = _default_template(path, fields)
        if source:
            return ChatTemplate(source, tokens)
    return None


def _read_jinja(path: Path) -> dict[str, str]:
    data = read_bytes(path)
    check_encoding(path, data[:4])
    try:
        return {'chat_template': data.decode('utf-8-sig')}
    except UnicodeDecodeError as error:
        raise CheckpointError(f'{path}: not UTF-8 ({error.reason} at byte {error.start})') from None


def _default_template(path: Path, fields: Mapping[str, Any]) -> str | None:
    """The template in a file: one string, or several by name, of which transformers uses `default`."""
    template = fields.get('chat_template')
    if isinstance(template, list):
        if not all(isinstance(entry, dict) and isinstance(entry.get('name'), str) for entry in template):
            raise CheckpointError(f'{path}: chat_template: expected a list of {{"name", "template"}} objects')
        template = {entry['name']: entry.get('template') for entry in template}
    if isinstance(template, dict):
        template = template.get('default')
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f'{path}: chat_template: expected a string, found {brief(template)}')
    return template


def render_chat(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool
) -> str:
    """Renders messages in the format of transformers, at the end the start of an answer if asked for.

    Raises RenderingError if the template fails.
    """
    variables = {
        **template.tokens,
        'messages': messages,
        'tools': None,
        'documents': None,
        'add_generation_prompt': add_generation_prompt,
    }
    return RENDERER.render(template.source, variables)
