"""A server that is shutting down answers what it has accepted, and ends in bounded time."""

import asyncio
import json
import socket
import threading
import time

import pytest

from tests.serving.live import read_response, read_status, request_bytes
from vipllava_jax.serving.options import ServerOptions
from vipllava_jax.serving.state import Server
from vipllava_jax.threads import background


def test_accepted_answers_are_complete_and_new_requests_refused(live):
    server = live(engine={'rows': 1, 'queue': 4, 'pace': 0.002})
    clients = [server.send(tokens=50) for _ in range(4)]
    server.wait(lambda: server.engine.asked == 4)
    draining = background(lambda: server.run(server.server.drain()))
    server.wait(lambda: server.server.is_draining)
    assert server.ask('GET', '/health').json == {'status': 'draining'}
    assert server.ask('GET', '/ready').status == 503
    refused = server.ask()
    assert (refused.status, refused.code, refused.headers['connection']) == (503, 'shutting_down', 'close')
    assert [read_status(client) for client in clients] == [200] * 4
    draining(5)
    assert server.engine.cancelled == 0
    for client in clients:
        client.close()


def test_a_request_that_is_read_too_late_ends_with_an_error(live):
    server = live(engine={'pace': 0.02}, drain=0.1)
    body = json.dumps({'tokens': 500}).encode()
    client = server.connect()
    whole = request_bytes(body)
    client.sendall(whole[:-3])
    server.wait(lambda: server.server.open)
    draining = background(lambda: server.run(server.server.drain()))
    time.sleep(0.3)
    client.sendall(whole[-3:])
    found = read_response(client)
    assert (found.status, found.code) == (503, 'shutting_down')
    draining(2)
    client.close()


def test_an_engine_that_fails_meanwhile_ends_all_requests(live):
    server = live(drain=5.0)
    server.engine.going.clear()
    client = server.send(stream=True)
    server.wait(lambda: server.engine.open)
    draining = background(lambda: server.run(server.server.drain()))
    server.wait(lambda: server.server.is_draining)
    server.engine.fail(RuntimeError('the device is gone'))
    assert read_response(client).code == 'engine_failed'
    draining(1)
    client.close()


def test_it_is_not_closed_before_its_threads_have_ended(monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: answered.wait(10) and [])
    server = Server(ServerOptions('tiny'), lambda report: None)

    async def resolve() -> None:
        await asyncio.wait_for(server.images.resolve('example.com', 443), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(resolve())
    closing = background(server.close)
    with pytest.raises(TimeoutError):
        closing(0.1)
    answered.set()
    closing(5)
