"""Pictures are prepared as by the processor; one that fails, or its process, costs its question alone."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vipllava_jax as vj
from tests.data.test_workers import gone
from vipllava_jax.engine import picture_process, pictures
from vipllava_jax.engine.picture_worker import HEADER, MAX_TEXT, message_of, read_answer
from vipllava_jax.engine.pictures import Pictures, default_workers
from vipllava_jax.engine.question import Question, QuestionError
from vipllava_jax.inputs.pixels import ImageSettings

ROOT = Path(__file__).parents[2]
SIDE = 28
SETTINGS = ImageSettings(side=SIDE, edge=SIDE)
RED = vj.Mark('rectangle', box=(10, 10, 40, 30))
pytestmark = pytest.mark.timeout(120)


def picture(size=(60, 50), seed=0):
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)


def png(image):
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()


@pytest.fixture(scope='module')
def here():
    with Pictures(SETTINGS, 0) as pool:
        yield pool


@pytest.fixture(scope='module')
def pool():
    with Pictures(SETTINGS, 1) as pool:
        yield pool


@pytest.fixture(params=['here', 'pool'])
def either(request):
    return request.getfixturevalue(request.param)


def pid_of(pool):
    return pool.processes[0].start().pid


def stopped(pool):
    """Stops the worker of a pool as soon as it waits for a question, and returns its id."""
    pool.submit(Question('What?', picture())).result()
    os.kill(pid := pid_of(pool), signal.SIGSTOP)
    return pid


def test_pictures_are_those_of_the_processor(either, model, tmp_path, monkeypatch):
    image = picture()
    image.save(tmp_path / 'a.png')
    monkeypatch.chdir(tmp_path)  # which the worker process does not follow
    transparent = picture().convert('RGBA')
    transparent.putalpha(100)
    sources = ['a.png', tmp_path / 'a.png', png(image), bytearray(png(image)), image, np.asarray(image)]
    sources += [Image.open('a.png'), transparent, np.asarray(image)[:, ::-1]]
    for fit in (None, 'pad'):
        found = either.submit(Question('What?', sources, ['2/arrow:20,20:blue', RED], fit=fit)).result()
        drawn = [vj.draw(image, RED), vj.draw(image, vj.Mark('arrow', point=(20, 20), color='blue'))]
        drawn += sources[2:]
        expected = [model.processor.pixels(source, fit=fit) for source in drawn]
        np.testing.assert_array_equal(found.pixels, expected)
        assert found.pixels.dtype == np.float32
        assert found.digests == tuple(hashlib.sha256(pixels).digest() for pixels in expected)
        assert found.warnings == ()


def test_marks_that_are_cut_off_are_reported(either):
    question = Question('What?', [picture(), picture((90, 30))], '2/point:2,15:red')
    (warning,) = either.submit(question).result().warnings
    assert warning == (
        "the crop cuts off the mark point:2,15:red on image 2: fit='pad' keeps the whole image"
    )


def test_without_pictures_nothing_is_sent(here):
    found = here.submit(Question('What?')).result(0)
    assert (found.pixels.shape, found.digests, found.warnings) == ((0, SIDE, SIDE, 3), (), ())


BROKEN = {
    'image 2 is not a picture in a known format': [picture(), b'text'],
    'the image is damaged or cut short': [png(picture())[:-200]],
    'no picture at': ['nowhere.png'],
    'is a URL: download the picture': ['http://localhost/a.png'],
    'is not a file': [ROOT],
    'the image is 0x3: it has no pixels': [Image.new('RGB', (0, 3))],
    'the image: mark rectangle:10,10,40,30:red lies outside the picture': [picture((20, 20))],
}


@pytest.mark.parametrize('message', BROKEN)
def test_a_broken_picture_costs_its_question_alone(either, message):
    before, broken, after = (
        either.submit(Question('What?', images, RED)) for images in (picture(), BROKEN[message], picture())
    )
    with pytest.raises(QuestionError) as error:
        broken.result()
    assert message in str(error.value)
    np.testing.assert_array_equal(before.result().pixels, after.result().pixels)


def test_a_picture_of_too_many_pixels_is_refused_by_the_worker(monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    data = png(picture((30, 30))), png(picture((40, 40)))
    with Pictures(SETTINGS, 1) as pool:
        small, large = (pool.submit(Question('What?', source)) for source in data)
        assert small.result().pixels.shape == (1, SIDE, SIDE, 3)
        with pytest.raises(QuestionError, match='million pixels'):
            large.result()


def test_a_killed_worker_costs_its_question_alone(pool):
    pid = stopped(pool)
    lost, other = (pool.submit(Question('What?', 'b.png' if n else picture())) for n in (0, 1))
    time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(QuestionError, match=r'^the image: the process .* ended unexpectedly \(SIGKILL\)'):
        lost.result()
    with pytest.raises(QuestionError, match='no picture at'):
        other.result()
    assert pool.submit(Question('What?', picture())).result().warnings == ()
    assert pid_of(pool) != pid
    assert gone(pid, 1)


def test_a_worker_that_takes_too_long_is_replaced(pool, monkeypatch):
    pid = stopped(pool)
    monkeypatch.setattr(pictures, 'SECONDS', 0.3)
    late = pool.submit(Question('What?', ['a.png', picture(), np.zeros((2000, 2000, 3), np.uint8)]))
    with pytest.raises(QuestionError, match=r"^'a.png', image 2, image 3: it takes longer than 0 seconds"):
        late.result()
    monkeypatch.undo()
    assert pool.submit(Question('What?', picture())).result().warnings == ()
    assert gone(pid, 1)


def test_a_question_may_be_cancelled_while_it_waits(pool):
    pid = stopped(pool)
    first, second, third = (pool.submit(Question('What?', picture())) for _ in range(3))
    time.sleep(0.2)
    assert second.cancel()
    assert not first.cancel()
    os.kill(pid, signal.SIGCONT)
    np.testing.assert_array_equal(first.result().pixels, third.result().pixels)


def test_closing_ends_everything_at_once():
    pool = Pictures(SETTINGS, 1)
    pid = stopped(pool)
    running, waiting = (pool.submit(Question('What?', picture())) for _ in range(2))
    time.sleep(0.2)
    begin = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - begin < 3
    assert gone(pid, 1)
    for future in (running, waiting):
        with pytest.raises(CancelledError):
            future.result(0)
    assert not any(thread.is_alive() for thread in pool._threads)
    with pytest.raises(RuntimeError, match='closed'):
        pool.submit(Question('What?', picture()))


@pytest.mark.parametrize(
    'code',
    [
        'import sys; sys.exit(3)',
        'import pickle, sys; pickle.dump(print, sys.stdout.buffer); sys.stdout.flush()',
        'import sys; sys.stdin.close(); sys.stdout.buffer.write(bytes(10)); sys.stdout.flush()',
    ],
)
def test_a_worker_that_answers_something_else_is_an_error(code, monkeypatch):
    monkeypatch.setattr(picture_process, 'WORKER_CODE', code)
    with Pictures(SETTINGS, 1) as pool:
        for _ in range(2):
            with pytest.raises(QuestionError, match='ended unexpectedly'):
                pool.submit(Question('What?', picture())).result()


@pytest.mark.parametrize(
    ('data', 'error'),
    [
        (b'', EOFError),
        (HEADER.pack(0, 3) + b'ab', EOFError),
        (HEADER.pack(0, 0) + bytes(100), EOFError),
        (HEADER.pack(2, 0) + bytes(100_000), ValueError),
        (HEADER.pack(1, MAX_TEXT + 1) + bytes(2 * MAX_TEXT), ValueError),
    ],
)
def test_an_answer_of_another_form_is_not_read(data, error):
    with pytest.raises(error):
        read_answer(io.BytesIO(data), 2, SIDE)


def test_messages_are_printable_and_of_bounded_length():
    text = b'a\x1b[31m\xff' + b'b' * 5000
    message = read_answer(io.BytesIO(HEADER.pack(1, len(text)) + text), 1, SIDE)
    assert message.startswith('a\\x1b[31m')
    assert len(message) <= 500
    assert 'too much memory' in message_of(MemoryError())
    assert message_of(PermissionError(13, 'no', 'a.png')) == "'a.png' cannot be opened: Permission denied"
    assert message_of(KeyError('x')) == "the pictures cannot be prepared: KeyError 'x'"


def test_at_least_one_process_is_started():
    assert 1 <= default_workers() <= 16


SCRIPT = """
import sys, time
import numpy as np
from vipllava_jax.engine.pictures import Pictures
from vipllava_jax.engine.question import Question
from vipllava_jax.inputs.pixels import ImageSettings

pool = Pictures(ImageSettings(), 2)
futures = [pool.submit(Question('What?', np.zeros((2000, 2000, 3), np.uint8))) for _ in range(500)]
futures[0].result(), futures[1].result()
print(*(process.start().pid for process in pool.processes), flush=True)
print('ready', flush=True)
if sys.argv[1:]:
    sys.exit()
try:
    time.sleep(60)
except KeyboardInterrupt:
    futures[2].result()
    futures = [pool.submit(Question('What?', np.zeros((200, 200, 3), np.uint8))) for _ in range(2)]
    pool.close()
    print('interrupted', flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize('sign', [signal.SIGKILL, signal.SIGINT, None])
def test_no_worker_outlives_its_parent(sign, tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, tmp_path / 'script.py', *(['exit'] if sign is None else [])]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert parent.stdout.readline() == 'ready\n', parent.stderr.read()
        if sign:
            os.killpg(parent.pid, sign)
        out, err = parent.communicate(timeout=30)
    assert len({*pids}) == 2
    assert all(map(gone, pids))
    if sign != signal.SIGKILL:
        assert (out, err) == ('interrupted\n' if sign else '', '')
