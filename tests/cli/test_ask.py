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
from vipllava_jax.cli import stdin as stdin_module
from vipllava_jax.cli.ask import read_question
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.world import Scene, Thing
from vipllava_jax.messages import safe_answer

MARK = 'rectangle:20,10,60,50:red'
SAMPLED = ('--max-new-tokens', 40, '--temperature', 2, '--seed', 1)  # an answer without an end token


def test_the_answer_equals_that_of_the_library(vipllava, folder, photo):
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
def test_the_answer_is_about_the_marked_thing(vipllava, tmp_path, mark, answer):
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


def test_json_has_the_settings_with_which_the_answer_can_be_repeated(vipllava, folder, photo, tmp_path):
    marked = tmp_path / 'marked.png'
    two = ('ask', '--model', folder, '--image', photo, '--image', photo, '--mark', '2/' + MARK)
    sampled = (*two, '--template', 'hub', '--max-new-tokens', 5, '--temperature', 0.7, '--seed', 3)
    ran = vipllava(*sampled, '--json', '--save-image', marked, 'Compare {mark1}.')
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report['template'] == 'hub'
    assert report['prompt'] == 'Compare within the red rectangle.'
    assert (report['seed'], report['new_tokens']) == (3, 5)
    assert (report['dtype'], report['quantize']) == ('float32', None)
    with Image.open(marked) as picture:
        assert picture.size == (90, 60)
    again = vipllava(*sampled, report['prompt'])
    assert again.out == safe_answer(report['answer']) + '\n'


def test_json_has_the_type_of_the_weights(vipllava, folder):
    small = ('--dtype', 'bfloat16', '--quantize', 'int8')
    ran = vipllava('ask', '--model', folder, *small, '--max-new-tokens', 2, '--json', 'hi')
    report = json.loads(ran.out)
    assert (report['dtype'], report['quantize']) == ('bfloat16', 'int8')


def test_an_adapter_changes_the_answer(vipllava, folder, adapter):
    ask = ('ask', '--model', folder, '--max-new-tokens', 5)
    ran = vipllava(*ask, '--adapter', adapter, '--json', 'hi')
    report = json.loads(ran.out)
    model = vj.load(folder, adapter=adapter)
    out = vj.generate(model.params, model.processor('hi'), cfg=model.cfg, max_new_tokens=5)
    assert (report['answer'], report['adapter']) == (model.processor.decode(out)[0], str(adapter))
    assert report['answer'] != vipllava(*ask, 'hi').out.strip()


def test_too_little_memory_is_an_error_that_suggests_quantization(vipllava, folder, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')

    monkeypatch.setattr(loading.Source, 'load', full)
    ran = vipllava('ask', '--model', folder, 'hi')
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert '--quantize int8' in ran.err


def test_the_question_can_be_read_from_stdin(vipllava, folder):
    given = vipllava('ask', '--model', folder, '--max-new-tokens', 4, 'Hello')
    assert given.code == 0
    assert vipllava('ask', '--model', folder, '--max-new-tokens', 4, stdin='Hello\n') == given


def test_a_picture_can_be_read_from_stdin(vipllava, folder, photo, tmp_path):
    command = ('ask', '--model', folder, '--max-new-tokens', 4, '--mark', MARK, 'What is {mark}?')
    expected = vipllava(*command, '--image', photo, '--save-image', tmp_path / 'a.png')
    piped = ('--image', '-', '--save-image', tmp_path / 'b.png')
    assert vipllava(*command, *piped, stdin=photo.read_bytes()) == expected
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'x' * 100, 'the picture on stdin is not a picture in a known format'),
        (b'x' * 2000, 'the picture on stdin has more than 0 MiB'),
        (b'', 'the picture on stdin is empty'),
    ],
)
def test_a_picture_on_stdin_has_the_limits_of_files(vipllava, monkeypatch, data, message):
    monkeypatch.setattr('vipllava_jax.inputs.images.MAX_FILE_BYTES', 1000)
    ran = vipllava('ask', '--model', 'demo', '--image', '-', 'What?', stdin=data)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert message in ran.err


def test_a_terminal_is_not_a_picture(monkeypatch):
    monkeypatch.setattr(sys.stdin, 'isatty', lambda: True, raising=False)
    with pytest.raises(ValueError, match='the picture on stdin is missing: pipe one in'):
        stdin_module.read_picture()


def test_a_stop_string_ends_the_answer(vipllava, folder, monkeypatch):
    from vipllava_jax.inputs.processor import Processor

    command = ('ask', '--model', folder, *SAMPLED, '--json', 'hi')
    full = json.loads(vipllava(*command).out)
    assert not full['finished']
    stop = full['answer'][5:7]
    monkeypatch.setattr(Processor, 'stop_strings', lambda self, template: (stop,))
    cut = json.loads(vipllava(*command).out)
    assert cut['finished']
    assert cut['answer'] == full['answer'][: full['answer'].find(stop)]
    assert cut['new_tokens'] < 40


def test_a_stop_string_of_the_template_that_is_one_token_ends_the_answer(vipllava, folder, monkeypatch):
    from vipllava_jax.inputs.processor import Processor

    processor = Processor.load(folder)
    command = ('ask', '--model', folder, *SAMPLED, '--json', 'hi')
    batch = processor('hi')
    model = vj.load(folder)
    tokens = vj.generate(
        model.params, batch, cfg=model.cfg, max_new_tokens=40, temperature=2.0, seed=1
    ).tokens[0]
    names = [processor.tokenizer.backend.id_to_token(int(id)) for id in tokens]
    stop = next(name for name in names[3:] if not name.startswith(('▁', '<')))  # its text is its name
    monkeypatch.setattr(Processor, 'stop_strings', lambda self, template: (stop,))
    cut = json.loads(vipllava(*command).out)
    assert cut['finished']
    assert cut['new_tokens'] <= names.index(stop) + 1


def test_without_a_picture_there_is_a_warning(vipllava, folder):
    ran = vipllava('ask', '--model', folder, '--max-new-tokens', 1, 'hi')
    assert (ran.code, ran.err.count('\n')) == (0, 1)
    assert 'without --image' in ran.err


def test_control_characters_in_an_answer_are_escaped(vipllava, folder, monkeypatch):
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
        found = read_question(None)
    except ValueError as error:
        found = str(error)
    assert expected in found


def test_the_model_can_be_a_relative_path(vipllava, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert vipllava('ask', '--model', folder.name, '--max-new-tokens', 1, 'hi').code == 0


SLOWLY = """
import signal, time
from vipllava_jax.answering import replies
from vipllava_jax.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores

pieces = replies.Reply._pieces

def slowly(self):
    for piece in pieces(self):
        yield piece
        time.sleep(0.2)

replies.Reply._pieces = slowly
main()
"""


def test_an_interrupt_ends_the_command_with_its_signal(folder):
    command = [sys.executable, '-c', SLOWLY, 'ask', '--model', folder, '--max-new-tokens', '900', 'hi']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
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
    out_info = {}, {}  # a state and new tokens

    def compile(self):
        time.sleep(30)

decoding.prefill_batch = decoding.decode_chunk = Slow()
main()
"""


def test_an_error_does_not_wait_for_the_compiler(folder, tmp_path):
    damaged = tmp_path / 'damaged'
    shutil.copytree(folder, damaged)
    for file in (damaged / 'params').rglob('*'):
        if file.is_file():
            file.write_bytes(b'')
    begin = time.perf_counter()
    command = [sys.executable, '-c', SLOW_TO_COMPILE, 'ask', '--model', damaged, 'hi']
    done = subprocess.run(command, capture_output=True, text=True)
    assert time.perf_counter() - begin < 25  # most of it is imports, on a busy machine
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('vipllava: ')
    assert done.stderr.count('\n') == 1, done.stderr


def test_a_mark_that_the_crop_cuts_off_is_a_warning(vipllava, folder, photo):
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
        (['--image', 'PHOTO', '--mark', '3/' + MARK, 'q'], 'is on image 3, but there is 1 image'),
        (['--mark', MARK, 'q'], '--image FILE'),
        (['--image', 'PHOTO', 'What is {mark}?'], 'there are 0 marks'),
        (['--image', 'PHOTO', '--mark', MARK, 'What is {mark2}?'], 'there is 1 mark'),
        (['--image', 'PHOTO', '--save-image', 'x.nope', 'q'], 'expected a name that ends in .png'),
        (['--save-image', 'x.png', 'q'], 'needs an --image'),
        ([], 'the question is empty'),
        (['--image', '-'], 'give the question as an argument'),
        (['--image', '-', 'q'], 'the picture on stdin is empty'),
        (['--image', '-', '--image', '-', 'q'], 'give it once'),
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
def test_an_invalid_argument_is_one_line_before_loading(vipllava, photo, monkeypatch, args, message):
    monkeypatch.setattr(loading.Source, 'load', None)
    code, out, err = vipllava('ask', *[str(photo) if a == 'PHOTO' else a for a in args])
    assert (code, out) == (2, '')
    assert err.startswith('vipllava: ')
    assert err.count('\n') == 1
    assert message in err


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--max-new-tokens', '2000', 'q'], 'request at most'),
        (['--template', 'checkpoint', 'q'], 'no chat template'),
        (['--image', 'PHOTO', '<image><image> q'], '<image>'),
        (['--adapter', '/nowhere', 'q'], '/nowhere: no adapter: looked for adapter_model.safetensors'),
    ],
)
def test_what_does_not_fit_the_model_is_an_error_before_its_weights_are_loaded(
    vipllava, folder, photo, monkeypatch, args, message
):
    monkeypatch.setattr(loading.Source, 'load', None)
    code, out, err = vipllava('ask', '--model', folder, *[str(photo) if a == 'PHOTO' else a for a in args])
    assert (code, out) == (2, '')
    assert message in err
    assert err.count('\n') == 1
