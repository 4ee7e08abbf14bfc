"""Results are in the order of the tasks, errors are raised, and no process outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vipllava_jax.data.workers import map_in_order

ROOT = Path(__file__).parents[2]


def slow_square(n):
    time.sleep(0.02 * (n % 3))
    return n * n


def process_id(_):
    return os.getpid()


def arrays(n):
    return {'a': np.full((300, 1000), n, np.float32), 'b': np.arange(n)}


def fails_at_three(n):
    if n == 3:
        raise ValueError('no three')
    if n == 4:
        raise ZeroDivisionError('no four')
    if n == 5:
        os._exit(9)
    print('what is printed does no harm', os.environ.get('JAX_PLATFORMS'))
    return n


def doubled(task):
    return np.concatenate([task, task])


def leaves(_):
    sys.exit('I leave')


def cannot_be_sent(_):
    return lambda: None


def has_jax(_):
    return 'jax' in sys.modules


@pytest.mark.parametrize('workers', [0, 1, 2, 3])
@pytest.mark.parametrize('count', [0, 1, 2, 20])
def test_results_are_in_order(workers, count):
    assert list(map_in_order(slow_square, range(count), workers)) == [n * n for n in range(count)]


def test_arrays_arrive_complete_and_writable():
    for n, result in enumerate(map_in_order(arrays, range(5), 2)):
        assert result.keys() == {'a', 'b'}
        np.testing.assert_array_equal(result['a'], arrays(n)['a'])
        np.testing.assert_array_equal(result['b'], arrays(n)['b'])
        result['a'][0] = -1


@pytest.mark.timeout(60)
@pytest.mark.parametrize('workers', [1, 2])
def test_tasks_and_results_may_be_larger_than_a_pipe(workers):
    tasks = [np.full(4 << 20, n, np.uint8) for n in range(8)]
    for n, result in enumerate(map_in_order(doubled, tasks, workers)):
        np.testing.assert_array_equal(result, np.full(8 << 20, n, np.uint8))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(('work', 'message'), [(leaves, 'SystemExit: I leave'), (cannot_be_sent, 'pickle')])
def test_every_failure_of_a_worker_is_raised(work, message):
    with pytest.raises(RuntimeError, match=message):
        list(map_in_order(work, range(3), 2))


@pytest.mark.parametrize(
    ('task', 'error', 'message'),
    [
        (3, ValueError, '^no three$'),
        (4, RuntimeError, 'fails_at_three[^$]*ZeroDivisionError: no four'),
        (5, ChildProcessError, 'a worker process ended unexpectedly, exit code 9'),
    ],
)
def test_an_error_is_raised_after_the_results_before_it(task, error, message):
    results = []
    with pytest.raises(error, match=message):
        results.extend(map_in_order(fails_at_three, [0, 1, 2, task, 0, 1, 2], 2))
    assert results == [0, 1, 2]


def test_an_error_of_the_tasks_is_raised():
    def tasks():
        yield 1
        raise KeyError('tasks')

    with pytest.raises(KeyError, match='tasks'):
        list(map_in_order(slow_square, tasks(), 2))


def test_work_that_cannot_be_pickled_is_an_error():
    with pytest.raises(Exception, match='pickle'):
        list(map_in_order(lambda n: n, range(3), 2))


def gone(pid, patience=10.0):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            if Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] == 'Z':
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_closing_ends_the_processes():
    results = map_in_order(process_id, range(1000), 2)
    pids = {next(results), next(results)}
    assert len(pids) == 2
    assert os.getpid() not in pids
    start = time.monotonic()
    results.close()
    assert all(gone(pid, 0.5) for pid in pids)
    assert time.monotonic() - start < 2


SCRIPT = """
import sys, time
import tests.data.test_workers as module
from vipllava_jax.data.workers import map_in_order
sys.modules['jax'] = None  # a worker that ran this script again would have it too
results = map_in_order(module.process_id, range(10**6), 2)
print(next(results), next(results), flush=True)
assert not any(map_in_order(module.has_jax, range(2), 2))
try:
    print('ready', flush=True)
    for _ in results:
        time.sleep(0.01)
except KeyboardInterrupt:
    print('interrupted', flush=True)
"""


@pytest.mark.parametrize('sign', [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(sign, tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)  # without the guard that multiprocessing would need
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    with subprocess.Popen(
        [sys.executable, tmp_path / 'script.py'],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert parent.stdout.readline() == 'ready\n', parent.stderr.read()
        os.killpg(parent.pid, sign)
        out, err = parent.communicate(timeout=20)
    assert len(pids) == 2
    assert all(map(gone, pids))
    if sign == signal.SIGINT:
        assert (out, err) == ('interrupted\n', '')


def test_an_unclosed_iterator_does_not_block_the_exit(tmp_path):
    (tmp_path / 'script.py').write_text(
        'import numpy as np\n'
        'from tests.data.test_workers import arrays\n'
        'from vipllava_jax.data.workers import map_in_order\n'
        'results = map_in_order(arrays, range(1000), 2)\n'
        "print(next(results)['b'])\n"
    )
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, tmp_path / 'script.py']
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, '[]\n', '')
