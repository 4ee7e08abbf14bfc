"""Connections that do nothing, send what is no HTTP, or do not read, are closed."""

import json
import socket
import time

import pytest

from tests.serving.live import JSON, read_all, read_response, request_bytes
from vipllava_jax.serving import connections, responses
from vipllava_jax.serving.metrics import Metrics


@pytest.fixture
def ended(monkeypatch):
    """Why requests have ended."""
    reasons = []

    def note(self, path, exchange, replies, status, why):
        reasons.append(why)

    monkeypatch.setattr(Metrics, 'ended', note)
    return reasons


def test_a_connection_serves_many_requests(live):
    server = live()
    client = server.connect()
    for _ in range(3):
        client.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
        assert read_response(client).json == {'status': 'ready'}
    client.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
    assert b'ready' in read_all(client)
    client.close()


@pytest.mark.parametrize(('is_first', 'begin'), [(True, b''), (True, b'POST /v1'), (False, b'G')])
def test_the_head_of_a_request_arrives_in_time(live, is_first, begin):
    server = live(head_timeout=0.2)
    client = server.connect()
    if not is_first:
        client.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
        assert read_response(client).status == 200
    client.sendall(begin)
    found = read_response(client)
    assert (found.status, found.code, found.headers['connection']) == (408, 'timeout', 'close')
    assert client.recv(1) == b''
    client.close()


def test_a_long_answer_is_not_a_late_head(live):
    server = live(engine={'pace': 0.02}, head_timeout=0.1)
    assert server.ask(tokens=20).status == 200


def test_what_is_not_http_is_an_error_in_json(live):
    server = live()
    for data in (
        b'\x16\x03\x01\x02\x00\x01',
        b'GET\r\n\r\n',
        b'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
    ):
        client = server.connect()
        client.sendall(data + b'\r\n\r\n')
        found = read_all(client)
        assert found.startswith(b'HTTP/1.1 400 Bad Request\r\n')
        assert b'\r\nx-request-id: ' in found
        assert json.loads(found.partition(b'\r\n\r\n')[2])['error']['code'] == 'invalid_http'
        client.close()


def test_what_follows_a_body_of_two_lengths_is_no_request(live):
    client = live().connect()
    head = 'Content-Type: application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n'
    inner = b'GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n'
    client.sendall(request_bytes(b'2\r\n{}\r\n0\r\n\r\n' + inner, head))
    found = read_all(client)
    assert found.startswith(b'HTTP/1.1 400 Bad Request\r\n')
    assert found.count(b'HTTP/1.1') == 1
    assert json.loads(found.partition(b'\r\n\r\n')[2])['error']['code'] == 'invalid_http'
    client.close()


@pytest.mark.parametrize('other', ['h2c', 'websocket'])
def test_an_offer_of_another_protocol_is_declined_in_silence(live, caplog, other):
    offer = {'Connection': 'Upgrade', 'Upgrade': other}
    assert live().ask('GET', '/health', headers=offer).status == 200
    assert not caplog.records


def test_the_number_of_connections_is_bounded(live):
    server = live(connections=3)
    clients = [server.connect() for _ in range(3)]
    clients[0].sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
    assert read_response(clients[0]).status == 200
    extra = server.connect()
    assert b'too_many_connections' in read_all(extra)
    clients.pop().close()
    server.wait(lambda: server.ask('GET', '/health', headers=JSON).status == 200)
    for client in [*clients, extra]:
        client.close()


@pytest.mark.parametrize(('stream', 'pad'), [(True, 20_000), (False, 30_000_000)])
def test_a_reader_that_takes_nothing_is_cut_off_and_others_are_not_held_up(live, ended, stream, pad):
    server = live(engine={'rows': 8, 'pace': 0.0002}, send_timeout=0.3)
    lazy = server.connect(receive_buffer=4096)
    lazy.sendall(request_bytes(json.dumps({'tokens': 480, 'stream': stream, 'pad': pad}).encode()))
    server.wait(lambda: server.engine.asked)
    assert server.ask(tokens=20).status == 200
    server.wait(server.is_idle)
    time.sleep(1)
    assert len(read_all(lazy)) < 9_000_000
    lazy.close()
    assert ('slow_reader' in ended) == stream  # a whole response was left to the system


def test_a_slow_reader_that_takes_something_is_served(live):
    server = live(engine={'pace': 0.0002}, send_timeout=0.3)
    slow = server.connect(receive_buffer=1 << 16)
    slow.sendall(request_bytes(json.dumps({'tokens': 100, 'stream': True, 'pad': 100_000}).encode()))
    found = b''
    while b'[DONE]' not in found[-100:]:
        found = found[-100:] + slow.recv(1 << 20)
        time.sleep(0.01)
    slow.close()


def test_a_reader_that_takes_less_than_the_system_holds_is_served(live, monkeypatch):
    made = connections.Connection.connection_made

    def hold(self, transport):
        transport.get_extra_info('socket').setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        made(self, transport)

    monkeypatch.setattr(connections.Connection, 'connection_made', hold)
    server = live(engine={'pace': 0.0002}, send_timeout=0.5)
    slow = server.connect(receive_buffer=4096)
    slow.sendall(request_bytes(json.dumps({'tokens': 100, 'stream': True, 'pad': 20_000}).encode()))
    found, end = b'', time.monotonic() + 3
    while part := slow.recv(4096):
        found = found[-100:] + part
        if b'[DONE]' in found:
            break
        time.sleep(0.06 if time.monotonic() < end else 0)
    assert b'[DONE]' in found
    slow.close()


def test_a_refused_request_does_not_hang_on_its_body(live):
    server = live(engine={'rows': 1, 'queue': 1})
    limit = server.server.options.limits.body_bytes
    for head in (
        f'Content-Length: {limit + 1}\r\n',
        f'Content-Length: {limit + 1}\r\nExpect: 100-continue\r\n',
    ):
        client = server.connect()
        begin = time.monotonic()
        client.sendall(request_bytes(b'{', head + 'Content-Type: application/json\r\n'))
        found = read_response(client)
        assert (found.status, found.headers['connection']) == (413, 'close')
        assert time.monotonic() - begin < 0.5
        client.close()
    server.wait(server.is_idle)


def test_a_client_that_goes_on_sending_still_reads_why_it_was_refused(live, monkeypatch):
    monkeypatch.setattr(responses, 'LINGER_BYTES', 1 << 20)
    server = live(api_keys=('key',))
    client = server.connect()
    body = b'x' * (3 << 20)
    client.sendall(request_bytes(b'', f'Content-Type: application/json\r\nContent-Length: {len(body)}\r\n'))
    sent = 0
    try:
        while sent < len(body):
            sent += client.send(body[sent : sent + 65536])
    except OSError:
        pass
    assert read_response(client).code == 'invalid_api_key'
    client.close()


def test_a_half_closed_connection_counts_as_gone(live):
    server = live()
    server.engine.going.clear()
    client = server.send()
    server.wait(lambda: server.engine.open)
    client.shutdown(socket.SHUT_WR)
    server.wait(server.is_idle)
    assert server.engine.cancelled == 1
    client.close()


def test_small_parts_of_a_response_are_sent_at_once(live, monkeypatch):
    made, delays = connections.Connection.connection_made, []

    def note(self, transport):
        made(self, transport)
        delays.append(
            not transport.get_extra_info('socket').getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        )

    monkeypatch.setattr(connections.Connection, 'connection_made', note)
    live().ask()
    assert delays == [False]
