"""Two real processes join, exchange values, and end together."""

import signal
import time

import pytest

from tests.processes import run_processes, running_processes

ADDS = """
import numpy as np
from vipllava_jax import pods
place = pods.join('on')
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import vipllava_jax.sharding as sharding
mesh = sharding.make_mesh({'data': 4})
rows = jax.sharding.NamedSharding(mesh, P('data'))
x = jax.make_array_from_callback((4,), rows, lambda at: np.arange(1.0, 5.0)[at])
total = jax.jit(jnp.sum, out_shardings=jax.sharding.NamedSharding(mesh, P()))(x)
print(pods.banner(place).split(' (')[0], float(total), pods.gather(place.index), pods.from_first(place.index))
pods.leave()
"""


def test_two_processes_add_their_parts():
    first, second = run_processes(ADDS)
    assert (first.code, first.err) == (0, '')
    assert (second.code, second.err) == (0, '')
    assert first.out == 'process 0 of 2, 2 local of 4 devices 10.0 [0, 1] 0\n'
    assert second.out == 'process 1 of 2, 2 local of 4 devices 10.0 [0, 1] 0\n'


SLEEPS = """
import time
from vipllava_jax import pods
pods.join('on', heartbeat=10)
print('joined', flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, pytest.param(1, marks=pytest.mark.by_hand)])
def test_a_dead_process_ends_the_other_within_the_heartbeat(index):
    """Also while it does not wait for the dead one."""
    with running_processes(SLEEPS) as started:
        end = time.monotonic() + 60
        while not all('joined' in running.out for running in started):
            assert time.monotonic() < end
            time.sleep(0.1)
        started[index].process.kill()
        left = started[1 - index].finish(10 + 10)
    assert left.code == -signal.SIGABRT
    assert 'another task died' in left.err


FAILS = """
import os
from vipllava_jax import pods
place = pods.join('on')
errors = {'ONE': ('1',), 'BOTH': ('0', '1')}
for kind, indices in errors.items():
    try:
        with pods.together():
            if os.environ['JAX_PROCESS_ID'] in indices:
                raise ValueError('no such file')
    except pods.PodError as error:
        print(kind, error, '|', error.__cause__)
try:
    with pods.together():
        raise ValueError('\U0001f4f7"' * 500)
except pods.PodError as error:
    print('LONG', len(str(error)))
with pods.together():
    print(pods.signal_of_any(15 * place.index), pods.from_first('ä' * 5000 * (place.index + 1)) == 'ä' * 5000)
try:
    pods.gather('x' * 5000)
except ValueError as error:
    print(error)
pods.leave()
"""


def test_an_error_in_one_process_is_raised_in_all():
    first, second = run_processes(FAILS)
    assert (first.code, second.code) == (0, 0), first.err
    rest = ['LONG 500', '15 True', 'gather: a value of 5002 bytes, expected at most 2002']
    one, both = 'ONE process 1: no such file | ', 'BOTH no such file | no such file'
    assert first.out.splitlines() == [f'{one}None', both, *rest]
    assert second.out.splitlines() == [f'{one}no such file', both, *rest]


def test_a_process_that_is_alone_does_the_same_without_jax():
    script = """
import sys
from vipllava_jax import pods
assert pods.gather(3) == [3] and pods.from_first('x') == 'x' and pods.signal_of_any(2) == 2
assert (pods.process_index(), pods.process_count(), pods.is_first()) == (0, 1, True)
with pods.together():
    pods.leave()
print('jax' in sys.modules)
"""
    (ran,) = run_processes(script, 1)
    assert (ran.code, ran.out, ran.err) == (0, 'False\n', '')
