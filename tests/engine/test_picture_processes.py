"""A worker process that fails costs its question alone, and none outlives the pool or its parent."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

import vipllava_jax as vj
from tests.data.test_workers import gone
from tests.engine.pictures import SETTINGS, picture
from vipllava_jax.engine import picture_process, pictures
from vipllava_jax.engine.picture_process import PictureProcess, WorkerLost
from vipllava_jax.engine.picture_worker import PictureTask, WorkerSettings
from vipllava_jax.engine.pictures import Pictures
from vipllava_jax.engine.question import Question, QuestionError

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(120)


def pid_of(pool):
    return pool.processes[0].start().pid


def stopped(pool):
    """Stops the worker of a pool as soon as it waits for a question, and returns its id."""
    pool.submit(Question('What?', picture())).result()
    os.kill(pid := pid_of(pool), signal.SIGSTOP)
    return pid


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


def test_a_worker_that_is_killed_while_it_waits_costs_nothing(pool):
    pool.submit(Question('What?', picture())).result()
    os.kill(pid := pid_of(pool), signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert pool.submit(Question('What?', picture())).result().warnings == ()


def test_a_worker_ends_itself_without_its_parent():
    process = PictureProcess(WorkerSettings(SETTINGS, 1, None))
    marks = (vj.Mark('scribble', box=(10, 10, 900, 900)),) * 5000
    with pytest.raises(WorkerLost, match='SIGALRM'):
        process.prepare(PictureTask((picture((1000, 1000)),), ('a',), (marks,), None), 30)
    process.end()


def test_the_memory_of_a_worker_is_limited():
    code = 'from vipllava_jax.engine import picture_worker as w; w.limit_memory(); bytearray(w.MAX_MEMORY)'
    ran = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stderr.endswith('MemoryError\n')


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
    with Pictures(SETTINGS, 1) as pool:
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
try:
    print('ready', flush=True)
    if sys.argv[1:]:
        sys.exit()
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
