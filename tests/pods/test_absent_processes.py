"""Joining fails with a message that says what to check if the others do not come."""

import signal
import socket
import time

import pytest

from tests.processes import run_processes, running_processes

WAITS = """
from vipllava_jax import cli, pods
import click
cli.main(click.command()(lambda: print('waits', flush=True) or pods.join('on', timeout=3)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('variables', 'messages'),
    [
        (
            {'JAX_PROCESS_ID': '1'},
            (
                'process 1 of 2 waited 3 s',
                'nothing listens on the port: process 0 did not start',
                'firewall',
                '8476',
            ),
        ),
        (
            {'MEGASCALE_COORDINATOR_ADDRESS': 'gone', 'MEGASCALE_NUM_SLICES': '2'},
            (
                'process 0 of 2 waited 3 s',
                '0 of them are connected',
                'unset MEGASCALE_COORDINATOR_ADDRESS, MEG',
            ),
        ),
        (
            {'JAX_PROCESS_ID': '1', 'JAX_COORDINATOR_ADDRESS': 'no-such-host.invalid:8476'},
            ('the name no-such-host.invalid is not known here',),
        ),
    ],
)
def test_a_host_that_does_not_come_is_an_error_with_the_first_suspects(variables, messages):
    (ran,) = run_processes(WAITS, 1, env={'JAX_NUM_PROCESSES': '2', **variables}, timeout=30)
    assert (ran.code, ran.out) == (2, 'waits\n')
    assert ran.err.startswith('vipllava: process ')
    assert ran.err.count('\n') == 1
    for message in messages:
        assert message in ran.err


@pytest.mark.slow
def test_the_hosts_that_came_are_named():
    first, second = run_processes(WAITS, 2, env={'JAX_NUM_PROCESSES': '3'}, timeout=30)
    assert (first.code, second.code) == (2, 2)
    assert '1 of them are connected, from 127.0.0.1: look for those that did not start' in first.err
    assert 'process 1 of 3 waited 3 s' in second.err
    assert 'process 0 answers: another one did not start' in second.err


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_waits_for_the_others(number):
    with running_processes(WAITS.replace('=3', '=60'), 1, env={'JAX_NUM_PROCESSES': '2'}) as (waiting,):
        while 'waits' not in waiting.out:
            time.sleep(0.1)
        time.sleep(1)
        waiting.process.send_signal(number)
        ran = waiting.finish(10)
    assert (ran.code, ran.err) == (-number, '')


def test_a_port_in_use_is_an_error(data):
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(('::', 0))
        listener.listen()
        address = f'localhost:{listener.getsockname()[1]}'
        command = ['eval', '--data', data, '--distributed', 'on', '--coordinator', address]
        (ran,) = run_processes(command, 1, timeout=30)
    assert (ran.code, ran.out) == (2, '')
    port = address.partition(':')[2]
    assert f'process 0 of 1 cannot listen on port {port} of this host (Address already in use): ' in ran.err
