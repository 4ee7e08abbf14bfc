"""The coordinator of a job is reached from other hosts, and has a free port on its own."""

import socket

import pytest

from tests.processes import run_processes
from vipllava_jax.clusters import VARIABLES
from vipllava_jax.doctor import network
from vipllava_jax.doctor.check import NoAnswer
from vipllava_jax.doctor.network import check_coordinator, check_joining


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in VARIABLES.values():
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listening():
    with socket.create_server(('127.0.0.1', 0)) as server:
        yield f'127.0.0.1:{server.getsockname()[1]}'


@pytest.fixture
def closed():
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'127.0.0.1:{server.getsockname()[1]}'
    return address


def test_without_a_coordinator_there_is_nothing_to_check():
    assert check_coordinator(None, None, None, 30).status == '--'


def test_a_coordinator_that_answers_is_ok(listening, monkeypatch):
    found = check_coordinator(listening, 4, 1, 30)
    assert (found.status, 'process 1 of 4' in found.found) == ('ok', True)
    for name, value in zip(VARIABLES.values(), (listening, '4', '2'), strict=True):
        monkeypatch.setenv(name, value)
    assert 'process 2 of 4' in check_coordinator(None, None, None, 30).found


def test_a_coordinator_that_does_not_answer_is_reported(closed):
    found = check_coordinator(closed, 4, 1, 30)
    assert found.status == 'FAIL'
    assert 'firewalls' in found.advice


def test_an_unknown_name_of_a_host_is_reported():
    found = check_coordinator('no.such.host.invalid:8476', 4, 1, 30)
    assert (found.status, 'does not know the name' in found.found) == ('FAIL', True)


def test_process_0_needs_a_free_port(closed):
    found = check_coordinator(closed, 4, 0, 30)
    assert (found.status, 'free for this process' in found.found) == ('ok', True)


@pytest.mark.slow
def test_joining_says_why_the_others_are_missing(closed):
    (found,) = check_joining(closed, 2, 1, 3)
    assert found.status == 'FAIL'
    assert 'nothing listens on the port' in found.found
    assert found.advice.startswith('a firewall may block port')
    (found,) = check_joining(None, None, None, 3)
    assert (found.status, found.found) == ('FAIL', 'no cluster that jax knows was found')
    assert '--coordinator or' in found.advice
    assert '--distributed' not in found.advice


JOINS = """
from vipllava_jax.doctor.network import check_joining
for check in check_joining(None, None, None, 60):
    print(check.status, check.name, check.found)
"""


@pytest.mark.slow
def test_processes_that_join_add_over_all_devices():
    for index, process in enumerate(run_processes(JOINS)):
        assert process.code == 0, process.err
        assert f'ok joining process {index} of 2, 2 local of 4 devices' in process.out
        assert 'ok sum over hosts 4 devices' in process.out


def test_invalid_and_missing_values_are_reported(listening):
    assert 'expected HOST:PORT' in check_coordinator('\x1b[2J', 4, 1, 30).found
    assert '--process-index' in check_coordinator(listening, 4, None, 30).advice


def test_a_name_server_that_does_not_answer_is_reported(monkeypatch):
    def blocked(*_, **__):
        raise NoAnswer('no answer within 30 s')

    monkeypatch.setattr(network, 'ask', blocked)
    found = check_coordinator('host:1', 2, 1, 30)
    assert (found.status, found.found) == ('FAIL', 'no answer within 30 s')
