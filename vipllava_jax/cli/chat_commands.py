"""The commands of a chat, which begin with a slash: '/image photo.jpg'."""

import contextlib
import difflib
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click

from vipllava_jax.cli.chat_session import ChatSession
from vipllava_jax.cli.chat_settings import with_setting
from vipllava_jax.messages import brief, printable, safe_answer


class Leave(Exception):
    """The user leaves the chat."""


class Command(NamedTuple):
    """A command of a chat."""

    argument: str  # how the help writes it; '' if there is none
    help: str
    run: Callable[[ChatSession, str], None]


def run_command(session: ChatSession, line: str) -> None:
    """Runs a line that begins with a slash; raises ValueError for an unknown command, and Leave for /quit."""
    name, _, argument = line[1:].partition(' ')
    command = COMMANDS.get(SHORT.get(name, name))
    if command is None:
        close = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f'did you mean /{close[0]}? ' if close else ''
        raise ValueError(
            f'there is no command {brief("/" + name)}: {meant}/help lists them; for a question that begins '
            'with a slash, type a space before it'
        )
    if argument.strip() and not command.argument:
        raise ValueError(f'/{name} takes nothing after it, found {brief(argument.strip())}')
    command.run(session, argument.strip())


def image(session: ChatSession, path: str) -> None:
    if path:
        session.add_image(given_path(path))
        session.show_images(len(session.images) - 1)
    elif session.images:
        session.show_images()
    else:
        count = plural(len(session.asked_images()), 'picture')
        click.echo(f'the chat has {count}, and the next question no new one: /image FILE adds one', err=True)


def mark(session: ChatSession, spec: str) -> None:
    if spec:
        session.add_mark(spec)
        session.show_marks(len(session.marks) - 1)
    elif session.marks:
        session.show_marks()
    else:
        click.echo(
            'the next question has no mark: /mark rectangle:40,60,180,220:red draws one, and /mark '
            '2/point:0.5,0.5 one on picture 2',
            err=True,
        )


def clear(session: ChatSession, _: str) -> None:
    session.bring()
    click.echo('the next question has no new picture and no mark', err=True)


def undo(session: ChatSession, _: str) -> None:
    question = session.chat.undo()
    if question.images or question.marks:
        session.bring(question.images, question.marks)
    session.keep()
    brought = ['its pictures'] * bool(question.images) + ['its marks'] * bool(question.marks)
    still = f'; the next question has {" and ".join(brought)}, unless you /clear them' if brought else ''
    click.echo(f'took back {brief(question.text)}{still}', err=True)


def retry(session: ChatSession, _: str) -> None:
    if not session.chat.settings.temperature and session.chat.finish_reason == 'stop':
        click.echo('at temperature 0, the answer is likely the same: /set temperature 0.7', err=True)
    session.stream(session.chat.stream_retry)


def edit(session: ChatSession, text: str) -> None:
    if not session.chat.questions:
        raise ValueError('the chat has no question yet: ask one first')
    if text:
        return session.stream(lambda: session.chat.stream_edit(-2, text))
    session.typed = f'/edit {session.chat.questions[-1].text}'


def save(session: ChatSession, path: str) -> None:
    file = Path(given_path(path)) if path else session.file
    if file is None:
        raise ValueError('/save needs the name of a file: /save chat.json')
    if file != session.file and os.path.lexists(file):
        raise ValueError(f'{file}: exists: choose another name, or remove it first')
    session.chat.save(file)
    session.file, session.is_saved = file, True
    click.echo(f'saved in {printable(str(file))}', err=True)


def load(session: ChatSession, path: str) -> None:
    if not path:
        raise ValueError('/load needs the name of a file that /save wrote')
    file = Path(given_path(path))
    session.begin(type(session.chat).load(file, session.chat.model, settings=session.chat.settings), file)
    show_loaded(session)


def show_loaded(session: ChatSession) -> None:
    """Says how long the chat is, and repeats the last question and answer."""
    questions = session.chat.questions
    counts = plural(len(questions), 'question'), plural(len(session.asked_images()), 'picture')
    click.echo(f'the chat has {" and ".join(counts)}', err=True)
    if questions:
        click.echo(f'> {printable(questions[-1].text)}', err=True)
        click.echo(safe_answer(session.chat.turns[-1].text), err=True)


def new(session: ChatSession, _: str) -> None:
    old = session.chat
    another = type(old)(
        old.model, system=old.system, template=old.template, settings=old.settings, fit=old.fit
    )
    session.begin(another, None)
    click.echo('a new chat, without pictures: /image FILE adds one', err=True)


def change_setting(session: ChatSession, text: str) -> None:
    """'temperature 0.7', 'temperature=0.7' or '--temperature 0.7' changes a setting; '' shows them."""
    if text:
        session.chat.settings = with_setting(session.chat.settings, text)
    shown = repr(session.chat.settings).removeprefix('GenerationSettings')[1:-1]
    click.echo(f'settings: {printable(shown) or "the defaults"}', err=True)


def show_help(session: ChatSession, _: str) -> None:
    usages = [f'/{name} {command.argument}' for name, command in COMMANDS.items()]
    for usage, command in zip(usages, COMMANDS.values(), strict=True):
        click.echo(f'  {usage:{max(map(len, usages))}}  {command.help}', err=True)
    click.echo(HELP, err=True)


def leave(session: ChatSession, _: str) -> None:
    raise Leave


def plural(count: int, thing: str) -> str:
    return f'{count} {thing}{"" if count == 1 else "s"}'


def given_path(text: str) -> str:
    """A path as it was typed or dropped on the terminal, which may put it in quotes or escape its spaces."""
    if not os.path.lexists(text):
        with contextlib.suppress(ValueError):
            words = shlex.split(text)
            text = words[0] if len(words) == 1 else text
    return os.path.expanduser(text)


HELP = """\
Everything else is a question. {mark}, {mark2}, … in it are replaced by the phrases of its marks. A line that
ends in \\ continues on the next. Ctrl-C stops an answer; Ctrl-D leaves the chat."""
SHORT = {'exit': 'quit', 'q': 'quit', '?': 'help', 'h': 'help'}
COMMANDS = {
    'image': Command('[FILE]', 'add a picture to the next question; alone, list those that are added', image),
    'mark': Command('[SPEC]', 'draw a mark for the next question, as --mark does; alone, list them', mark),
    'clear': Command('', 'forget the pictures and marks that are not asked about yet', clear),
    'undo': Command('', 'take back the last question and its answer', undo),
    'retry': Command('', 'answer the last question again', retry),
    'edit': Command('[TEXT]', 'ask TEXT instead of the last question; alone, change it at the prompt', edit),
    'set': Command(
        '[NAME VALUE]', 'change a setting, such as temperature 0.7; alone, show them', change_setting
    ),
    'save': Command('[FILE]', 'write the chat with its pictures to a file', save),
    'load': Command('FILE', 'go on with a chat that was saved', load),
    'new': Command('', 'begin another chat', new),
    'help': Command('', 'show this', show_help),
    'quit': Command('', 'leave the chat', leave),
}
