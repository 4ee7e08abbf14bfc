"""`vipllava chat`: a conversation about pictures with marks."""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vipllava_jax import signals
from vipllava_jax.cli.chat_commands import Leave, run_command, show_loaded
from vipllava_jax.cli.chat_completion import completions
from vipllava_jax.cli.chat_lines import LEAVING, PipedLines, TerminalLines
from vipllava_jax.cli.chat_session import ChatSession
from vipllava_jax.cli.chat_state import KeptChat, state_folder
from vipllava_jax.cli.generation_options import (
    OF_SEVERAL,
    OPTIONS,
    GenerationCommand,
    generation_options,
    pop_settings,
)
from vipllava_jax.cli.memory import reserve
from vipllava_jax.cli.mesh import mesh_option
from vipllava_jax.cli.models import (
    fit_option,
    load_model,
    model_option,
    open_model,
    pop_weight_options,
    template_option,
    weight_options,
)
from vipllava_jax.cli.paths import FILE, STDIN
from vipllava_jax.cli.pictures import mark_option
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.answering.chat import Chat
    from vipllava_jax.generation.settings import GenerationSettings
    from vipllava_jax.loading import Model

GROUPS = {
    'Chat': ('source', 'images', 'marks', 'chat_file', 'template', 'fit', 'no_history'),
    'Generation': (*(name for name in OPTIONS if name not in OF_SEVERAL), 'others'),
    'Weights': ('dtype', 'quantize', 'adapter', 'mesh'),
}


@click.command(cls=GenerationCommand, groups=GROUPS)
@model_option
@click.option(
    '--image',
    'images',
    metavar='FILE',
    multiple=True,
    type=FILE,
    help='A picture of the first question. May be repeated.',
)
@mark_option
@click.option('--load', 'chat_file', metavar='FILE', type=FILE, help='Go on with a chat that was saved.')
@template_option
@fit_option("as in the checkpoint's files")
@click.option(
    '--no-history',
    is_flag=True,
    help='Keep neither the lines that are typed nor the chat in your folder of states '
    '(XDG_STATE_HOME, ~/.local/state/vipllava).',
)
@partial(generation_options, without=OF_SEVERAL)
@weight_options
@mesh_option
def chat(
    source: str,
    images: tuple[str, ...],
    marks: tuple[str, ...],
    chat_file: str | None,
    template: str,
    fit: Any,
    no_history: bool,
    mesh: Any,
    **options: Any,
) -> None:
    """Chat about pictures with marks drawn on them; each answer takes all that was said into account.

    Lines are questions, or commands such as /image FILE, /mark SPEC, /undo and /save FILE; /help lists them.
    {mark} in a question is replaced by the phrase of its mark. Ctrl-C stops an answer, Ctrl-D leaves the
    chat. If stdin is not a terminal, the answers to its lines are printed without anything else, and the
    first error ends the chat.

    \b
    Examples:
      vipllava chat --image photo.jpg --mark rectangle:40,60,180,220:red
      vipllava chat --model demo --load chat.json --temperature 0.7
      printf 'What is this?\\nIs it old?\\n' | vipllava chat --image photo.jpg
    """
    if mesh is not None:
        reserve()
    given = pop_settings(options, as_json=False)
    check_chat_options(images, chat_file)
    from vipllava_jax.generation.model import Model
    from vipllava_jax.generation.settings import GenerationSettings

    begin = partial(begin_chat, chat_file, template, fit, GenerationSettings(**given))
    is_terminal = sys.stdin.isatty()
    folder = state_folder(os.environ) if is_terminal and not no_history else None
    weights, processor = open_model(source, pop_weight_options(options), mesh)
    session = ChatSession(
        begin(Model(weights.shapes(), weights.cfg, processor)), KeptChat(folder), is_terminal
    )
    add_to_question(session, images, marks)
    if images and not chat_file:
        session.compile()
    session.chat = begin(load_model(weights, processor)[0])
    session.file = Path(chat_file) if chat_file else None
    if is_terminal:
        if chat_file:
            show_loaded(session)
        click.echo(LEAVING, err=True)
    lines = TerminalLines(completions, folder and folder / 'chat_history') if is_terminal else PipedLines()
    converse(session, lines)


def add_to_question(session: ChatSession, images: Sequence[str], marks: Sequence[str]) -> None:
    """Adds pictures and marks to the first question, checks that they fit each other, and shows them."""
    for path in images:
        session.add_image(path)
    for spec in marks:
        session.add_mark(spec)
    if images or marks:
        session.check()
    if session.is_terminal:
        session.show_images()
        session.show_marks()


def check_chat_options(images: Sequence[str], chat_file: str | None) -> None:
    """Raises ValueError for options that do not go together."""
    if STDIN in images:
        raise ValueError(f'--image {STDIN}: the questions are read from stdin: give the path of the picture')
    context = click.get_current_context()
    for name in ('template', 'fit'):
        if chat_file and context.get_parameter_source(name) != ParameterSource.DEFAULT:
            raise ValueError(f'--{name} and --load are both given: leave out --{name}, which the file has')


def begin_chat(
    file: str | None, template: str, fit: Any, settings: 'GenerationSettings', model: 'Model'
) -> 'Chat':
    """The chat in a file, or without one a new chat."""
    from vipllava_jax.answering.chat import Chat

    if file is not None:
        return Chat.load(file, model, settings=settings)
    return Chat(model, template=template, settings=settings, fit=fit)


def converse(session: ChatSession, lines: TerminalLines | PipedLines) -> None:
    """Answers questions and runs commands until the end of the input, or the first error in a pipe.

    On a terminal, Ctrl-C does not end the chat, also while a command runs or the chat is being kept.
    """
    with signals.recording_interrupts() if lines.is_terminal else nullcontext():
        while handle(session, lines):
            pass
        session.leave_chat()


def handle(session: ChatSession, lines: TerminalLines | PipedLines) -> bool:
    """Answers the next question or runs the next command; returns whether the chat goes on."""
    from vipllava_jax.cli import user_error

    try:
        line = lines.read(session.take_typed())
        if line is None:
            return False
        if line.startswith('/'):
            run_command(session, line)
        else:
            session.ask(line.strip())
    except Leave:
        return False
    except Exception as error:
        message = user_error(error)
        if message is None or not lines.is_terminal:
            raise
        click.echo(f'vipllava: {printable(message)}', err=True)
    return True
