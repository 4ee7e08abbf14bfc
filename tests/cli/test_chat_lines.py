"""What Tab completes in a chat, how its lines are read, and what is kept of it."""

import os
import signal
import stat
import threading

import pytest

from vipllava_jax.cli import chat_lines, chat_state
from vipllava_jax.cli.chat_commands import COMMANDS, given_path
from vipllava_jax.cli.chat_completion import completions
from vipllava_jax.cli.chat_lines import TerminalLines, load_history
from vipllava_jax.cli.chat_session import ChatSession
from vipllava_jax.cli.chat_state import KeptChat, state_folder


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ('/', [f'/{name} ' for name in COMMANDS]),
        ('/im', ['/image ']),
        ('/image ph', ['photo.png', 'photos/']),
        ('/load a c', ['chat.json']),
        ('/image none', []),
        ('/image *', []),
        ('/mark 2/rect', ['2/rectangle:']),
        ('/set temp', ['temperature ']),
        ('/set temperature 0', []),
        ('/undo ', []),
        ('/nothing x', []),
        ('What is ph', []),
    ],
)
def test_tab_completes_commands_and_files(tmp_path, monkeypatch, line, expected):
    monkeypatch.chdir(tmp_path)
    for name in ('photo.png', 'a chat.json'):
        (tmp_path / name).touch()
    (tmp_path / 'photos').mkdir()
    assert completions(line, line.rfind(' ') + 1) == expected


@pytest.mark.parametrize('typed', ['my photo.png', "'my photo.png'", r'my\ photo.png', '"my photo.png"'])
def test_a_path_may_be_quoted(tmp_path, monkeypatch, typed):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my photo.png').touch()
    assert given_path(typed) == 'my photo.png'


def lines_of(monkeypatch, typed):
    """The inputs that a terminal gives for what input() returns or raises one after another."""
    prompts = []

    def answer(self, prompt):
        prompts.append(prompt)
        event = next(events)
        if isinstance(event, str):
            return event
        raise event

    events = iter([*typed, EOFError()])
    monkeypatch.setattr(TerminalLines, '_input', answer)
    lines = TerminalLines(completions, None)
    return [*iter(lines.read, None)], prompts


def test_a_line_goes_on_after_a_backslash_and_ctrl_c_drops_it(monkeypatch, capsys):
    typed = ['one \\', 'two', ' ', 'three \\', KeyboardInterrupt(), ' /four']
    read, prompts = lines_of(monkeypatch, typed)
    assert read == ['one \ntwo', ' /four']
    assert prompts == ['> ', '… ', '> ', '> ', '… ', '> ', '> ']
    assert chat_lines.LEAVING not in capsys.readouterr().err
    assert lines_of(monkeypatch, [KeyboardInterrupt()])[0] == []
    assert capsys.readouterr().err == f'\n{chat_lines.LEAVING}\n'


def test_the_history_is_for_the_user_alone_and_a_large_file_is_not_read(tmp_path, monkeypatch):
    class Readline:
        read: list = []

        def set_history_length(self, length):
            assert length == chat_lines.MAX_HISTORY

        def read_history_file(self, path):
            self.read.append(path)

    path = tmp_path / 'history'
    load_history(Readline(), path)
    assert (stat.S_IMODE(path.stat().st_mode), Readline.read) == (0o600, [path])
    monkeypatch.setattr(chat_lines, 'MAX_HISTORY_BYTES', 3)
    path.write_text('long')
    load_history(Readline(), path)
    load_history(Readline(), tmp_path / 'none' / 'history')
    assert Readline.read == [path]


class FakeChat:
    def __init__(self, text: str) -> None:
        self.text = text

    def save(self, path) -> None:
        if not self.text:
            raise OSError('No space left on device')
        path.write_text(self.text)


def test_ctrl_c_stops_an_answer_whose_programs_are_being_compiled(capsys):
    class Compiling(FakeChat):
        turns, tokens_left = (), 1000
        compiled = threading.Event()

        def compile(self) -> None:
            signal.raise_signal(signal.SIGINT)
            self.compiled.wait()

        def stream(self, *_):
            yield from ('an', ' answer')

    chat = Compiling('')
    session = ChatSession(chat, KeptChat(None), is_terminal=True)
    session.stream(chat.stream)
    ran = capsys.readouterr()
    assert (ran.out, ran.err) == ('\n', 'stopped: the answer has not begun: the chat is as before\n')
    chat.compiled.set()
    chat.compile = chat.compiled.wait
    chat.finish_reason = 'stop'
    session.stream(chat.stream)
    assert capsys.readouterr().out == 'an answer\n'


def test_the_last_chats_are_kept_in_a_folder_for_the_user_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chat_state, 'KEPT', 3)
    folder = state_folder({'XDG_STATE_HOME': str(tmp_path)})
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE((folder / 'chats').stat().st_mode) == 0o700
    kept = KeptChat(folder)
    for number in range(5):
        monkeypatch.setattr(os, 'getpid', lambda n=number: 1000 + n)
        kept.keep(FakeChat('older'))
        kept.keep(FakeChat(str(number)))
        kept.begin_another()
    assert [path.read_text() for path in sorted((folder / 'chats').iterdir())] == ['2', '3', '4']
    kept.keep(FakeChat(''))
    kept.keep(FakeChat('not kept'))
    assert kept.finish() is None
    assert 'the chat is no longer kept: No space left on device: /save FILE' in capsys.readouterr().err
    assert KeptChat(None).finish() is None


def test_without_a_place_nothing_is_kept(tmp_path):
    (tmp_path / 'file').touch()
    assert state_folder({'XDG_STATE_HOME': str(tmp_path / 'file')}) is None
