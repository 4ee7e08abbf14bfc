"""`vipllava chat` answers the lines on stdin in turn; its commands change the chat, and errors do not."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

import vipllava_jax as vj
from vipllava_jax import loading
from vipllava_jax.answering.chat import Chat
from vipllava_jax.answering.chat_files import SavedChat, read_chat, write_chat
from vipllava_jax.answering.chat_turns import Exchange, Question
from vipllava_jax.cli import chat_session
from vipllava_jax.messages import safe_answer

MARK = 'rectangle:20,10,60,50:red'


@pytest.mark.slow
def test_each_line_is_answered_as_by_the_library(vipllava, folder, photo, tmp_path):
    lines = 'What is {mark}?\n\n/mark ellipse:20,10,40,40:lime\nIs it\\\n{mark}?\n/save chat.json\n'
    about = ('chat', '--model', folder, '--image', photo, '--mark', MARK, '--max-new-tokens', 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        ran = vipllava(*about, stdin=lines)
    chat = Chat(vj.load(folder), settings=vj.GenerationSettings(max_new_tokens=4))
    answers = [
        chat.ask('What is {mark}?', photo, MARK),
        chat.ask('Is it\n{mark}?', marks='ellipse:20,10,40,40:lime'),
    ]
    assert (ran.code, ran.out) == (0, ''.join(f'{safe_answer(answer)}\n' for answer in answers))
    assert 'mark 1, on picture 1: {mark} is "within the lime ellipse"' in ran.err
    assert Chat.load(tmp_path / 'chat.json', chat.model).turns == chat.turns


def test_commands_take_back_ask_again_and_load(vipllava, folder, photo, tmp_path):
    saved = tmp_path / 'a chat.json'
    lines = f"""/image {photo}
        /mark {MARK}
        What is {{mark}}?
        /undo
        What is {{mark}}?
        /set temperature 0.0
        /mark point:30,30
        /image {photo}
        /retry
        /mark
        /clear
        /edit Where is {{mark}}?
        /save '{saved}'
        /new
        hi
        /load {saved}
        /undo
        hi
        /quit
        unheard"""
    about = ('chat', '--model', folder, '--max-new-tokens', 3)
    code, out, err = vipllava(*about, stdin='\n'.join(line.strip() for line in lines.split('\n')))
    answers = out.removesuffix('\n').split('\n')
    assert (code, len(answers)) == (0, 6), err
    assert answers[0] == answers[1] == answers[2]
    assert answers[3] == safe_answer(Chat.load(saved, vj.load(folder)).turns[-1].text)
    again = vipllava(*about, '--load', saved, stdin='/undo\nhi\n/save\n')
    assert (again.code, again.out) == (0, answers[5] + '\n')
    assert Chat.load(saved, vj.load(folder)).questions[0].text == 'hi'
    assert 'picture 2: ' in err
    assert err.count('mark 1, on picture 1: {mark} is "at the red point"') == 2
    assert 'the next question has its pictures and its marks' in err


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('/imge x.png', "there is no command '/imge': did you mean /image?"),
        ('/\x1b[2J', r"no command '/\x1b[2J'"),
        ('/image none.png', 'none.png'),
        ('/mark blob:1,2,3,4', "unknown shape 'blob'"),
        ('/mark rectangle:1,2,3,4', 'there is a mark but no image'),
        ('What is {mark}?', 'there are 0 marks'),
        ('what ' * 2000, 'take back questions with /undo, or begin another chat with /new'),
        ('/undo', 'the chat has no question yet'),
        ('/retry', 'the chat has no question yet'),
        ('/edit What?', 'the chat has no question yet'),
        ('/save', '/save needs the name of a file'),
        ('/save EXISTING', 'exists: choose another name'),
        ('/load EXISTING', 'photo.png'),
        ('/load', '/load needs the name of a file'),
        ('/undo it', "/undo takes nothing after it, found 'it'"),
        ('/set temperature', 'temperature has no value'),
        ('/set temperature -1', 'temperature is -1'),
        ('/set temperature [1,2]', 'give one number'),
        ('/set n 2', 'num_return_sequences'),
        ('/set processors []', 'processors'),
        ('/set num_return_sequences=2', 'goes on from one answer'),
        ('/set bad_words_ids [[1', 'not valid JSON'),
        ('/set do_sample true', 'do_sample'),
        (b'\xff', 'a line on stdin is not UTF-8'),
    ],
)
def test_an_error_ends_a_chat_whose_lines_are_piped(vipllava, folder, photo, monkeypatch, line, message):
    monkeypatch.setattr(loading.Source, 'load', lambda self: self.shapes())  # nothing is computed
    text = line if isinstance(line, bytes) else line.replace('EXISTING', str(photo)).encode()
    ran = vipllava('chat', '--model', folder, stdin=text + b'\nhi')
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1), ran.err
    assert message in ran.err


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--image', '-'], 'give the path of the picture'),
        (['--image', 'none.png'], 'none.png'),
        (['--mark', MARK], 'there is a mark but no image'),
        (['--image', 'PHOTO', '--mark', 'rectangle:1,2,300,4'], 'outside the picture'),
        (['--image', 'PHOTO'] * 260, 'the context is full'),
        (['--load', 'PHOTO'], 'photo.png'),
        (['--load', 'PHOTO', '--template', 'hub'], '--template and --load are both given'),
        (['--temperature', '-1'], '--temperature'),
        (['--n', '2'], '--n'),
        (['--model', '/nowhere'], '/nowhere'),
    ],
)
def test_an_invalid_argument_is_one_line_before_loading(vipllava, folder, photo, monkeypatch, args, message):
    monkeypatch.setattr(loading.Source, 'load', None)
    ran = vipllava('chat', '--model', folder, *[str(photo) if arg == 'PHOTO' else arg for arg in args])
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1), ran.err
    assert message in ran.err


def test_a_full_chat_can_be_loaded_and_its_last_question_taken_back(vipllava, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loading.Source, 'load', lambda self: self.shapes())  # nothing is computed
    full = SavedChat(None, 'vipllava', None, (Exchange(Question('what ' * 2000), 'That.'),))
    write_chat(tmp_path / 'full.json', full, folder)
    ran = vipllava('chat', '--model', folder, '--load', tmp_path / 'full.json', stdin='/undo\n/save\n')
    assert (ran.code, ran.out) == (0, ''), ran.err
    assert read_chat(tmp_path / 'full.json').exchanges == ()


def test_the_number_of_tokens_is_said_before_the_context_is_full(vipllava, folder, monkeypatch):
    monkeypatch.setattr(chat_session, 'LOW', 10_000)
    ran = vipllava('chat', '--model', folder, '--max-new-tokens', 1, stdin='hi')
    assert ' tokens left: /undo takes back the last question' in ran.err


SLOWLY = """
import sys
import time
from vipllava_jax.answering import replies
from vipllava_jax.cli import main

pieces = replies.Reply._pieces

def slowly(self):
    for piece in pieces(self):
        yield piece
        if self.decoded.strip():
            print('has begun', file=sys.stderr)
            time.sleep(0.2)

replies.Reply._pieces = slowly
main()
"""


@pytest.mark.slow
def test_on_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(folder, tmp_path):
    command = [sys.executable, '-c', SLOWLY, 'chat', '--model', folder, '--max-new-tokens', '900']
    environment = {**os.environ, 'XDG_STATE_HOME': str(tmp_path), 'TERM': 'xterm'}
    here, there = pty.openpty()
    with subprocess.Popen(
        command, stdin=there, stdout=there, stderr=there, env=environment, start_new_session=True
    ) as running:
        seen = b''

        def wait_for(text: bytes) -> None:
            nonlocal seen
            begin = time.monotonic()
            while text not in seen:
                if time.monotonic() - begin > 100:
                    running.kill()  # the block would wait for it
                    pytest.fail(f'no {text!r} after {seen!r}')
                if select.select([here], [], [], 1)[0]:
                    seen += os.read(here, 4096)
            seen = seen.partition(text)[2]

        wait_for(b'> ')
        time.sleep(1)  # readline does not notice a signal between its prompt and its wait for a key
        running.send_signal(signal.SIGINT)
        wait_for(b'Ctrl-D or /quit leaves the chat')
        wait_for(b'> ')
        os.write(here, b'hello\n')
        wait_for(b'has begun')
        running.send_signal(signal.SIGINT)
        wait_for(b'stopped: the answer')
        wait_for(b'> ')
        os.write(here, b'\x04')
        wait_for(b'--load continues it')
        assert running.wait(30) == 0
    os.close(here)
    os.close(there)
    assert (tmp_path / 'vipllava/chat_history').read_text() == 'hello\n'
    assert (tmp_path / 'vipllava/chat_history').stat().st_mode & 0o777 == 0o600
    assert (tmp_path / 'vipllava').stat().st_mode & 0o777 == 0o700
    assert len([*(tmp_path / 'vipllava/chats').iterdir()]) == 1
