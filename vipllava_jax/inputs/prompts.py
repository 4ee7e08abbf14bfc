"""The prompt templates that the models were trained with, and rendering conversations in them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from vipllava_jax.inputs import chat_templates
from vipllava_jax.inputs.chat_templates import ChatTemplate
from vipllava_jax.inputs.rendering import RenderingError
from vipllava_jax.messages import brief, printable

IMAGE_TOKEN = '<image>'
DEFAULT_TEMPLATE = 'vipllava'


class Turn(NamedTuple):
    """One message: role 'system', 'user' or 'assistant', and the text."""

    role: str
    text: str


class Template(NamedTuple):
    """The format of each role's text; `cue` starts an answer, and each of `stops` ends it, as eos does."""

    preamble: str  # the system text of a conversation without one
    system: str
    user: str
    assistant: str
    cue: str
    stops: tuple[str, ...] = ()
    image: str = f'{IMAGE_TOKEN}\n'


VICUNA_SYSTEM = (
    'A chat between a curious human and an artificial intelligence assistant. '
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
LLAVA_SYSTEM = (
    'You are a helpful language and vision assistant. '
    'You are able to understand the visual content that the user provides, '
    'and assist the user with a variety of tasks using natural language.'
)
TEMPLATES = {
    'vipllava': Template(VICUNA_SYSTEM, '{} ', 'USER: {} ', 'ASSISTANT: {}</s>', 'ASSISTANT:'),
    'hub': Template(VICUNA_SYSTEM, '{}', '###Human: {}', '###Assistant: {}', '###Assistant:', ('###',)),
    'plain': Template('', '{}', '{}', '{}\n', '', image=IMAGE_TOKEN),
    'llama3': Template(
        LLAVA_SYSTEM,
        '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>',
        '<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>',
        '<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>',
        '<|start_header_id|>assistant<|end_header_id|>\n\n',
        ('<|eot_id|>',),
    ),
    'phi3': Template(
        LLAVA_SYSTEM,
        '<|system|>\n{}<|end|>\n',
        '<|user|>\n{}<|end|>\n',
        '<|assistant|>\n{}<|end|>\n',
        '<|assistant|>\n',
        ('<|end|>',),
    ),
}
TEMPLATE_NAMES = (*TEMPLATES, 'checkpoint')


def check_template(name: str, chat: ChatTemplate | None = None) -> None:
    """Raises ValueError for a template that does not exist, or that this checkpoint does not have."""
    if name not in TEMPLATE_NAMES:
        raise ValueError(f'unknown template {brief(name)}: choose {", ".join(TEMPLATE_NAMES)}')
    if name == 'checkpoint' and chat is None:
        raise ValueError(f'this checkpoint has no chat template of its own: choose {", ".join(TEMPLATES)}')


def stop_strings(name: str, chat: ChatTemplate | None = None) -> tuple[str, ...]:
    """The texts that end an answer in this template, besides the eos token."""
    check_template(name, chat)
    if chat and name == 'checkpoint':
        return tuple(stop for stop in TEMPLATES['hub'].stops if stop in chat.source)
    return TEMPLATES[name].stops


def render(name: str, turns: Sequence[Turn], image_count: int, chat: ChatTemplate | None = None) -> str:
    """A conversation -> the text for the model, with an `<image>` for each image, and the start of an answer.

    The images come first in the user's first turn, unless the text already contains `<image>`. Raises
    ValueError if it does so another number of times, for an unknown template or role, or if the checkpoint's
    template fails.
    """
    check_template(name, chat)
    _check_turns(turns)
    placed = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
    if placed not in (0, image_count):
        raise ValueError(
            f'{placed} {IMAGE_TOKEN} in the text for {image_count} image(s): write one for each, '
            'or none at all, and the images come first'
        )
    missing = image_count - placed
    text = _rendered(turns, missing, chat) if chat and name == 'checkpoint' else _framed(turns, missing, name)
    if (written := text.count(IMAGE_TOKEN)) != image_count:
        raise ValueError(
            f'template {name} wrote {written} {IMAGE_TOKEN} for {image_count} image(s): choose another'
        )
    return text


def _check_turns(turns: Sequence[Turn]) -> None:
    roles = [turn.role for turn in turns]
    for role in roles:
        if role not in ('system', 'user', 'assistant'):
            raise ValueError(f'unknown role {brief(role)}: choose system, user or assistant')
    if 'user' not in roles or 'system' in roles[1:]:
        found = ', '.join(roles) or 'no turns'
        raise ValueError(
            f'expected a turn of the user, and one of the system only at the start; found {found}'
        )


def _framed(turns: Sequence[Turn], missing: int, name: str) -> str:
    template = TEMPLATES[name]
    if template.preamble and turns[0].role != 'system':
        turns = [Turn('system', template.preamble), *turns]
    pieces = []
    for role, text in turns:
        if role == 'user':
            text, missing = template.image * missing + text, 0
        pieces.append(getattr(template, role).format(text))
    return ''.join(pieces) + (template.cue if turns[-1].role == 'user' else '')


def _rendered(turns: Sequence[Turn], missing: int, chat: ChatTemplate) -> str:
    typed = re.search(r"""['".]type\b""", chat.source)  # otherwise each content is one text
    messages = []
    for role, text in turns:
        images, missing = (missing, 0) if role == 'user' else (0, missing)
        parts = [{'type': 'image'}] * images + [{'type': 'text', 'text': text}]
        messages.append({'role': role, 'content': parts if typed else f'{IMAGE_TOKEN}\n' * images + text})
    try:
        return chat_templates.write(chat, messages, cue=turns[-1].role == 'user')
    except RenderingError as error:
        why, others = printable(str(error), 300), ', '.join(TEMPLATES)
        raise ValueError(f"the checkpoint's chat template fails ({why}): choose {others}") from None


def rendering_problem(chat: ChatTemplate) -> str | None:
    """Why a checkpoint's template cannot render a question about one picture; None if it can."""
    try:
        render('checkpoint', [Turn('user', 'What is this?')], 1, chat)
    except ValueError as error:
        return str(error)
    return None
