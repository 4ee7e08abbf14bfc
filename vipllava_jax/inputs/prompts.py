"""The templates that the models were trained with, as data, and a conversation written out in one."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

IMAGE = '<image>'
DEFAULT = 'vipllava'


class Turn(NamedTuple):
    """What one side says: role 'system', 'user' or 'assistant', and the text."""

    role: str
    text: str


class Template(NamedTuple):
    """How each role's text is framed; `cue` opens the answer, and each of `stops` ends it like an eos."""

    preamble: str  # the system text of a conversation that brings none of its own
    system: str
    user: str
    assistant: str
    cue: str
    stops: tuple[str, ...] = ()
    image: str = f'{IMAGE}\n'


CURIOUS = (
    'A chat between a curious human and an artificial intelligence assistant. '
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
HELPFUL = (
    'You are a helpful language and vision assistant. You are able to understand the visual content that the user '
    'provides, and assist the user with a variety of tasks using natural language.'
)
TEMPLATES = {
    'vipllava': Template(CURIOUS, '{} ', 'USER: {} ', 'ASSISTANT: {}</s>', 'ASSISTANT:'),
    'hub': Template(CURIOUS, '{}', '###Human: {}', '###Assistant: {}', '###Assistant:', ('###',)),
    'plain': Template('', '{}', '{}', '{}\n', '', image=IMAGE),
    'llama3': Template(
        HELPFUL,
        '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>',
        '<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>',
        '<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>',
        '<|start_header_id|>assistant<|end_header_id|>\n\n',
        ('<|eot_id|>',),
    ),
    'phi3': Template(
        HELPFUL,
        '<|system|>\n{}<|end|>\n',
        '<|user|>\n{}<|end|>\n',
        '<|assistant|>\n{}<|end|>\n',
        '<|assistant|>\n',
        ('<|end|>',),
    ),
}
NAMES = (*TEMPLATES, 'checkpoint')


class ChatTemplate(NamedTuple):
    """A checkpoint folder's own template, in Jinja, and the special tokens it may name, such as bos_token."""

    source: str
    tokens: Mapping[str, str] = {}


def render(name: str, turns: Sequence[Turn], image_count: int, chat: ChatTemplate | None = None) -> str:
    """A conversation -> the text the model reads, with one `<image>` an image; open for the answer to a user.

    Images come first in the first user turn unless the text already holds `<image>`. ValueError if it holds
    another number than `image_count`, for an unknown template or role, or when the folder's template fails.
    """
    check(name, chat)
    _check_turns(turns)
    placed = sum(turn.text.count(IMAGE) for turn in turns)
    if placed not in (0, image_count):
        raise ValueError(
            f'{placed} {IMAGE} in the text but {image_count} images: write {IMAGE} once for each image, or leave it '
            'out and the images come first'
        )
    missing = image_count - placed
    text = _rendered(chat, turns, missing) if name == 'checkpoint' and chat else _framed(name, turns, missing)
    if (found := text.count(IMAGE)) != image_count:
        raise ValueError(
            f'the template {name} wrote {found} {IMAGE} for {image_count} images: choose another template'
        )
    return text


def check(name: str, chat: ChatTemplate | None = None) -> None:
    """ValueError for a template that does not exist, or not in this checkpoint."""
    if name not in NAMES:
        raise ValueError(f'unknown template {name!r}: choose {", ".join(NAMES)}')
    if name == 'checkpoint' and chat is None:
        raise ValueError(f'this checkpoint has no chat template of its own: choose {", ".join(TEMPLATES)}')


def stops(name: str, chat: ChatTemplate | None = None) -> tuple[str, ...]:
    """The texts that end an answer written in this template; the eos token always does."""
    check(name, chat)
    if name == 'checkpoint' and chat:
        return tuple(stop for stop in TEMPLATES['hub'].stops if stop in chat.source)
    return TEMPLATES[name].stops


def _check_turns(turns: Sequence[Turn]) -> None:
    roles = [turn.role for turn in turns]
    if unknown := set(roles) - {'system', 'user', 'assistant'}:
        raise ValueError(f'unknown role {sorted(unknown)[0]!r}: choose system, user or assistant')
    if 'user' not in roles or 'system' in roles[1:]:
        raise ValueError(
            f'found turns of {", ".join(roles) or "nobody"}: expected a user, and system only at the start'
        )


def _framed(name: str, turns: Sequence[Turn], missing: int) -> str:
    template = TEMPLATES[name]
    if turns[0].role != 'system' and template.preamble:
        turns = [Turn('system', template.preamble), *turns]
    pieces = []
    for role, text in turns:
        if role == 'user':
            text, missing = template.image * missing + text, 0
        pieces.append(getattr(template, role).format(text))
    return ''.join(pieces) + (template.cue if turns[-1].role == 'user' else '')


SOURCE_LIMIT, TEXT_LIMIT, PRODUCT_LIMIT = 100_000, 10_000_000, 100_000  # characters


class _Sandbox(ImmutableSandboxedEnvironment):
    """Templates come with checkpoints, so are untrusted: no attributes of ours, no giant products."""

    intercepted_binops = frozenset({'*', '**'})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, (str, list, tuple)) else abs(side) for side in (left, right)]
        if operator == '**' or sizes[0] * sizes[1] > PRODUCT_LIMIT:
            raise SecurityError(f'{operator} makes something too large')
        return super().call_binop(context, operator, left, right)


def _rendered(chat: ChatTemplate, turns: Sequence[Turn], missing: int) -> str:
    """In the folder's own template, which takes contents either as text or as a list of typed parts."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    messages = []
    for role, text in turns:
        images, missing = (missing, 0) if role == 'user' else (0, missing)
        parts = [{'type': 'image'}] * images + [{'type': 'text', 'text': text}]
        messages.append(
            {'role': role, 'content': parts if 'type' in chat.source else f'{IMAGE}\n' * images + text}
        )
    try:
        if len(chat.source) > SOURCE_LIMIT:
            raise SecurityError(f'it is longer than {SOURCE_LIMIT} characters')
        sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True)
        given = {**chat.tokens, 'messages': messages, 'raise_exception': refuse}
        pieces, length = [], 0
        cue = turns[-1].role == 'user'
        for piece in sandbox.from_string(chat.source).generate(**given, add_generation_prompt=cue):
            pieces.append(piece)
            length += len(piece)
            if length > TEXT_LIMIT:
                raise SecurityError(f'it writes more than {TEXT_LIMIT} characters')
    except Exception as error:  # a template may fail in any way that Python can
        raise ValueError(
            f"the checkpoint's chat template fails ({error}): choose {', '.join(TEMPLATES)}"
        ) from error
    return ''.join(pieces)
