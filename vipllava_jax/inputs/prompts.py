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
ROLES = ('system', 'user', 'assistant')


class Turn(NamedTuple):
    """One message: role 'system', 'user' or 'assistant', and the text."""

    role: str
    text: str


class Template(NamedTuple):
    """The format of each role's text, and of the start of an answer."""

    default_system: str  # the system text of a conversation without one
    system: str
    user: str
    assistant: str
    answer_start: str
    stop_strings: tuple[str, ...] = ()  # each ends an answer, as eos does
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


def check_template(name: str, chat_template: ChatTemplate | None = None) -> None:
    """Raises ValueError for a template that does not exist, or that this checkpoint does not have."""
    if name not in TEMPLATE_NAMES:
        raise ValueError(f'unknown template {brief(name)}: choose {", ".join(TEMPLATE_NAMES)}')
    if name == 'checkpoint' and chat_template is None:
        raise ValueError(f'this checkpoint has no chat template: choose {", ".join(TEMPLATES)}')


def stop_strings(name: str, chat_template: ChatTemplate | None = None) -> tuple[str, ...]:
    """The strings that end an answer in this template, besides the eos token."""
    check_template(name, chat_template)
    if chat_template and name == 'checkpoint':
        return tuple(text for text in TEMPLATES['hub'].stop_strings if text in chat_template.source)
    return TEMPLATES[name].stop_strings


def render(
    name: str, turns: Sequence[Turn], image_count: int, chat_template: ChatTemplate | None = None
) -> str:
    """A conversation -> the model's prompt, with an `<image>` for each image and the start of an answer.

    The images come first in the user's first turn, unless the turns contain `<image>`. Raises ValueError if
    they do so another number of times, for an unknown template or role, or if the checkpoint's template
    fails.
    """
    check_template(name, chat_template)
    _check_turns(turns)
    placed = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
    if placed not in (0, image_count):
        raise ValueError(
            f'the text has {IMAGE_TOKEN} {placed} times for {image_count} image(s): write it once for each '
            'image, or leave it out, and the images come first'
        )
    unplaced = image_count - placed
    if chat_template and name == 'checkpoint':
        text = _render_checkpoint_template(turns, unplaced, chat_template)
    else:
        text = _render_template(TEMPLATES[name], turns, unplaced)
    if (found := text.count(IMAGE_TOKEN)) != image_count:
        raise ValueError(
            f'the template {name} wrote {IMAGE_TOKEN} {found} times for {image_count} image(s): '
            'choose another'
        )
    return text


def _check_turns(turns: Sequence[Turn]) -> None:
    roles = [turn.role for turn in turns]
    for role in roles:
        if role not in ROLES:
            raise ValueError(f'unknown role {brief(role)}: choose {", ".join(ROLES)}')
    if 'user' not in roles or 'system' in roles[1:]:
        found = ', '.join(roles) or 'no turns'
        raise ValueError(
            f'expected a turn of the user, and one of the system only at the start; found {found}'
        )


def _render_template(template: Template, turns: Sequence[Turn], unplaced: int) -> str:
    """Renders turns, with the images that their texts do not place in the user's first turn."""
    if template.default_system and turns[0].role != 'system':
        turns = [Turn('system', template.default_system), *turns]
    pieces = []
    for role, text in turns:
        if role == 'user':
            text, unplaced = template.image * unplaced + text, 0
        pieces.append(getattr(template, role).format(text))
    return ''.join(pieces) + (template.answer_start if turns[-1].role == 'user' else '')


def _render_checkpoint_template(turns: Sequence[Turn], unplaced: int, chat_template: ChatTemplate) -> str:
    """The same with a chat template, whose messages have parts if it reads their types, else strings."""
    reads_parts = re.search(r"""['".]type\b""", chat_template.source)
    messages = []
    for role, text in turns:
        images, unplaced = (unplaced, 0) if role == 'user' else (0, unplaced)
        parts = [{'type': 'image'}] * images + [{'type': 'text', 'text': text}]
        content = parts if reads_parts else f'{IMAGE_TOKEN}\n' * images + text
        messages.append({'role': role, 'content': content})
    try:
        return chat_templates.render_chat(
            chat_template, messages, add_generation_prompt=turns[-1].role == 'user'
        )
    except RenderingError as error:
        reason, others = printable(str(error), 300), ', '.join(TEMPLATES)
        raise ValueError(
            f"the checkpoint's chat template fails ({reason}): choose another template, {others}"
        ) from None


def rendering_problem(chat_template: ChatTemplate) -> str | None:
    """Why a checkpoint's template cannot render a question about one image; None if it can."""
    try:
        render('checkpoint', [Turn('user', 'What is this?')], 1, chat_template)
    except ValueError as error:
        return str(error)
    return None
