"""`vipllava ask` writes only the answer to stdout; errors are one line, before a model is loaded."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

import vipllava_jax as vj
from vipllava_jax import loading
from vipllava_jax.cli import ask as ask_module
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.world import Scene, Thing
from vipllava_jax.messages import safe_answer

MARK = 'rectangle:20,10,60,50:red'
DRAWN = ('--max-new-tokens', 40, '--temperature', 2, '--seed', 1)  # an answer without an end token


def test_the_answer_is_the_librarys(vipllava, folder, photo):
    ran = vipllava(
        'ask', '--model', folder, '--image', photo, '--mark', MARK, '--max-new-tokens', 9, 'What is {mark}?'
    )
    model = vj.load(folder)
    image = vj.draw(photo, [vj.Mark('rectangle', box=(20, 10, 60, 50))])
    batch = model.processor('What is within the red rectangle?', image)
    out = vj.generate(model.params, batch, cfg=model.cfg, max_new_tokens=9)
    assert ran == (0, model.processor.decode(out)[0] + '\n', '')


@pytest.mark.parametrize(
    ('mark', 'answer'),
    [
        ('rectangle:20,40,140,160:red', 'a star'),
        ('ellipse:190,180,310,300:blue', 'a house'),
        ('arrow:75,190,145,260:lime', 'a ring'),
    ],
)
def test_it_says_what_is_marked(vipllava, tmp_path, mark, answer):
    """Three things far apart, plain and clearly marked, which a trained model answers with certainty."""
    things = (
        Thing('star', 'navy', 'medium', 'plain', 80, 100, 50, 0.1),
        Thing('house', 'brown', 'medium', 'plain', 250, 240, 50, 0.0),
        Thing('ring', 'teal', 'small', 'plain', 110, 225, 35, 0.0),
    )
    picture(Scene(things, 'flat', 5)).save(tmp_path / 'world.png')
    ran = vipllava(
        'ask', '--model', 'demo', '--image', tmp_path / 'world.png', '--mark', mark, 'What is {mark}?'
    )
    assert ran == (0, answer + '\n', '')


def test_json_says_how_it_came(vipllava, folder, photo, tmp_path):
    marked = tmp_path / 'marked.png'
    two = ('ask', '--model', folder, '--image', photo, '--image', photo, '--mark', '2/' + MARK)
    drawn = (*two, '--template', 'hub', '--max-new-tokens', 5, '--temperature', 0.7, '--seed', 3)
    ran = vipllava(*drawn, '--json', '--save-image', marked, 'Compare {mark1}.')
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told['template'] == 'hub'
    assert told['prompt'] == 'Compare within the red rectangle.'
    assert (told['seed'], told['new_tokens']) == (3, 5)
    assert (told['dtype'], told['quantize']) == ('float32', None)
    with Image.open(marked) as picture:
        assert picture.size == (90, 60)
    again = vipllava(*drawn, told['prompt'])
    assert again.out == safe_answer(told['answer']) + '\n'


def test_json_says_which_weights_answered(vipllava, folder):
    small = ('--dtype', 'bfloat16', '--quantize', 'int8')
    ran = vipllava('ask', '--model', folder, *small, '--max-new-tokens', 2, '--json', 'hi')
    told = json.loads(ran.out)
    assert (told['dtype'], told['quantize']) == ('bfloat16', 'int8')


def test_an_adapter_answers(vipllava, folder, adapter):
    ask = ('ask', '--model', folder, '--max-new-tokens', 5)
    ran = vipllava(*ask, '--adapter', adapter, '--json', 'hi')
    told = json.loads(ran.out)
    model = vj.load(folder, adapter=adapter)
    out = vj.generate(model.params, model.processor('hi'), cfg=model.cfg, max_new_tokens=5)
    assert (told['answer'], told['adapter']) == (model.processor.decode(out)[0], str(adapter))
    assert told['answer'] != vipllava(*ask, 'hi').out.strip()


def test_a_model_too_large_is_told_what_makes_it_smaller(vipllava, folder, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')

    monkeypatch.setattr(loading.Source, 'load', full)
    ran = vipllava('ask', '--model', folder, 'hi')
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert '--quantize int8' in ran.err


def test_the_question_may_come_on_stdin(vipllava, folder):
    given = vipllava('ask', '--model', folder, '--max-new-tokens', 4, 'Hello')
    assert given.code == 0
    assert vipllava('ask', '--model', folder, '--max-new-tokens', 4, stdin='Hello\n') == given


def test_a_stop_string_ends_the_answer(vipllava, folder, monkeypatch):
    from vipllava_jax.inputs.processor import Processor

    asked = ('ask', '--model', folder, *DRAWN, '--json', 'hi')
    whole = json.loads(vipllava(*asked).out)
    assert not whole['finished']
    stop = whole['answer'][5:7]
    monkeypatch.setattr(Processor, 'stop_strings', lambda self, template: (stop,))
    cut = json.loads(vipllava(*asked).out)
    assert cut['finished']
    assert cut['answer'] == whole['answer'][: whole['answer'].find(stop)]
    assert cut['new_tokens'] < 40


def test_a_stop_that_is_a_special_token_ends_the_answer(vipllava, folder, monkeypatch):
    from vipllava_jax.inputs.processor import Processor

    processor = Processor.load(folder)
    asked = ('ask', '--model', folder, *DRAWN, '--json', 'hi')
    batch = processor('hi')
    model = vj.load(folder)
    tokens = vj.generate(
        model.params, batch, cfg=model.cfg, max_new_tokens=40, temperature=2.0, seed=1
    ).tokens[0]
    stop = processor.tokenizer.backend.id_to_token(int(tokens[6]))
    monkeypatch.setattr(Processor, 'stop_strings', lambda self, template: (stop,))
    cut = json.loads(vipllava(*asked).out)
    assert cut['finished']
    assert cut['new_tokens'] == list(tokens).index(tokens[6]) + 1


def test_without_a_picture_there_is_a_note(vipllava, folder):
    ran = vipllava('ask', '--model', folder, '--max-new-tokens', 1, 'hi')
    assert (ran.code, ran.err.count('\n')) == (0, 1)
    assert 'no --image' in ran.err


def test_commands_to_the_terminal_in_an_answer_are_shown_and_not_obeyed(vipllava, folder, monkeypatch):
    monkeypatch.setattr(
        'vipllava_jax.inputs.tokenizer.TextStream.end', lambda self: '\x1b]0;owned\x07\x9b2J\u202e'
    )
    ask = ('ask', '--model', folder, '--max-new-tokens', 1, 'hi')
    assert vipllava(*ask).out.endswith('\\x1b]0;owned\\x07\\x9b2J\\u202e\n')
    out = vipllava(*ask, '--json').out
    assert out.isascii()
    assert json.loads(out)['answer'].endswith('\x1b]0;owned\x07\x9b2J\u202e')


@pytest.mark.parametrize(
    ('data', 'expected'),
    [
        ('\ufeffWhat is it?\n'.encode(), 'What is it?'),
        ('What is it?'.encode('utf-16'), 'is UTF-16: write it in UTF-8'),
        ('What is it?'.encode('utf-16-be'), 'is UTF-16: write it in UTF-8'),
        ('What is it?'.encode('utf-32'), 'is UTF-32: write it in UTF-8'),
        (b'caf\xe9', 'is not UTF-8 at byte 3'),
        (b'x' * (1 << 20) + b'xx', 'has more than 1048576 bytes'),
        (b' \n', 'the question is empty'),
    ],
)
def test_stdin_is_utf8_of_bounded_length(monkeypatch, data, expected):
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(data)))
    try:
        found = ask_module.read(None)
    except ValueError as error:
        found = str(error)
    assert expected in found


def test_a_relative_folder(vipllava, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert vipllava('ask', '--model', folder.name, '--max-new-tokens', 1, 'hi').code == 0


SLOWLY = """
import signal, time
from vipllava_jax.cli import ask, main

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores

pieces = ask.Reply._pieces

def slowly(self):
    for piece in pieces(self):
        yield piece
        time.sleep(0.2)

ask.Reply._pieces = slowly
main()
"""


def test_an_interrupt_ends_it_as_interrupts_do(folder):
    asked = [sys.executable, '-c', SLOWLY, 'ask', '--model', folder, '--max-new-tokens', '900', 'hi']
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.read(1)  # the answer has started
        while running.poll() is None:  # a signal that arrives while jax collects garbage is lost
            running.send_signal(signal.SIGINT)
            time.sleep(1)
        assert running.returncode == -signal.SIGINT


SLOW_TO_COMPILE = """
import time
from vipllava_jax.cli import main
from vipllava_jax.generation import decoding

class Slow:
    trace = lower = lambda self, *args, **kwargs: self
    out_info = {}

    def compile(self):
        time.sleep(30)

decoding.prefill_batch = decoding.decode_chunk = Slow()
main()
"""


def test_a_damaged_folder_is_told_without_waiting_for_the_compiler(folder, tmp_path):
    damaged = tmp_path / 'damaged'
    shutil.copytree(folder, damaged)
    for file in (damaged / 'params').rglob('*'):
        if file.is_file():
            file.write_bytes(b'')
    begin = time.perf_counter()
    asked = [sys.executable, '-c', SLOW_TO_COMPILE, 'ask', '--model', damaged, 'hi']
    done = subprocess.run(asked, capture_output=True, text=True)
    assert time.perf_counter() - begin < 25  # most of it is imports, on a busy machine
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('vipllava: ')
    assert done.stderr.count('\n') == 1, done.stderr


def test_a_mark_at_the_border_is_warned_of(vipllava, folder, photo):
    args = (
        'ask',
        '--model',
        folder,
        '--image',
        photo,
        '--mark',
        'rectangle:0,5,12,40:red',
        '--max-new-tokens',
        1,
    )
    assert '--fit pad' in vipllava(*args, 'hi').err
    assert vipllava(*args, '--fit', 'pad', 'hi').err == ''


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--image', 'none.jpg', 'q'], 'none.jpg'),
        (['--image', 'PHOTO', '--mark', 'blob:1,2,3,4', 'q'], "unknown shape 'blob'"),
        (['--image', 'PHOTO', '--mark', 'rectangle:1,2,300,4', 'q'], 'outside the picture'),
        (['--image', 'PHOTO', '--mark', '3/' + MARK, 'q'], 'there is no image 3'),
        (['--mark', MARK, 'q'], 'add --image FILE'),
        (['--image', 'PHOTO', 'What is {mark}?'], 'there are 0 marks'),
        (['--image', 'PHOTO', '--mark', MARK, 'What is {mark2}?'], 'there is 1 mark'),
        (['--image', 'PHOTO', '--save-image', 'x.nope', 'q'], 'end the name in .png'),
        (['--save-image', 'x.png', 'q'], 'needs an --image'),
        ([], 'the question is empty'),
        (['--temperature', '-1', 'q'], '--temperature'),
        (['--temperature', 'nan', 'q'], '--temperature'),
        (['--temperature', '1e999', 'q'], '--temperature'),
        (['--top-p', 'nan', 'q'], '--top-p'),
        (['--top-k', '9' * 30, 'q'], '--top-k'),
        (['--top-k', str(2**31), 'q'], '--top-k'),
        (['--seed', '9' * 5000, 'q'], '--seed'),
        (['--max-new-tokens', '9' * 5000, 'q'], '--max-new-tokens'),
        (['--max-new-tokens', '1e3', 'q'], '--max-new-tokens'),
        (['--no\x1b[2J' + 'x' * 10**5, 'q'], r'--no\x1b[2Jxxx'),
        (['--top-p', '0', 'q'], '--top-p'),
        (['--template', 'none', 'q'], '--template'),
        (['--nonsense', 'q'], '--nonsense'),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_loaded(vipllava, photo, monkeypatch, args, message):
    monkeypatch.setattr(loading.Source, 'load', None)
    code, out, err = vipllava('ask', *[str(photo) if a == 'PHOTO' else a for a in args])
    assert (code, out) == (2, '')
    assert err.startswith('vipllava: ')
    assert err.count('\n') == 1
    assert message in err


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--max-new-tokens', '2000', 'q'], 'ask for at most'),
        (['--template', 'checkpoint', 'q'], 'no chat template'),
        (['--image', 'PHOTO', '<image><image> q'], '<image>'),
        (['--adapter', '/nowhere', 'q'], '/nowhere: no adapter: looked for adapter_model.safetensors'),
    ],
)
def test_what_only_the_model_knows_is_told_before_its_weights(
    vipllava, folder, photo, monkeypatch, args, message
):
    monkeypatch.setattr(loading.Source, 'load', None)
    code, out, err = vipllava('ask', '--model', folder, *[str(photo) if a == 'PHOTO' else a for a in args])
    assert (code, out) == (2, '')
    assert message in err
    assert err.count('\n') == 1
