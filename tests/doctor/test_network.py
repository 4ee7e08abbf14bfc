"""The coordinator of a job is reached from other hosts, and has a free port on its own."""

import socket

import pytest

from vipllava_jax.clusters import VARIABLES
from vipllava_jax.doctor import network
from vipllava_jax.doctor.check import NoAnswer
from vipllava_jax.doctor.network import check_coordinator


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


def test_process_0_needs_a_free_port(closed):
    found = check_coordinator(closed, 4, 0, 30)
    assert (found.status, 'free for this process' in found.found) == ('ok', True)


def test_invalid_and_missing_values_are_reported(listening):
    assert 'expected HOST:PORT' in check_coordinator('\x1b[2J', 4, 1, 30).found
    assert '--process-index' in check_coordinator(listening, 4, None, 30).found


def test_a_name_server_that_does_not_answer_is_reported(monkeypatch):
    def blocked(*_, **__):
        raise NoAnswer('no answer within 30 s')

    monkeypatch.setattr(network, 'ask', blocked)
    found = check_coordinator('host:1', 2, 1, 30)
    assert (found.status, found.found) == ('FAIL', 'no answer within 30 s')
