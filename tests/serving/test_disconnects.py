"""Clients that disconnect at any point, and bodies that are damaged on their way, leave nothing behind."""

import random
import resource
import socket
import struct
import time

import pytest

from tests.serving.live import read_response, request_bytes

BODY = b'{"prompts": ["What?", "Why?"], "tokens": 200, "stream": %b}'


def leave(client: socket.socket, rudely: bool) -> None:
    """Closes a connection, `rudely` with a reset."""
    if rudely:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    client.close()


@pytest.mark.parametrize('stream', [b'true', b'false'])
def test_clients_leave_at_random_points(live, stream):
    server = live(engine={'pace': 0.002})
    rng = random.Random(0)
    request = request_bytes(BODY % stream)
    for number in range(20):
        client = server.connect()
        if number % 2:
            client.sendall(request)
            time.sleep(rng.uniform(0, 0.1))
        else:
            client.sendall(request[: rng.randrange(len(request))])
            time.sleep(rng.uniform(0, 0.01))
        leave(client, rudely=rng.random() < 0.5)
    server.wait(server.is_idle)
    assert server.engine.asked == server.engine.cancelled > 10
    assert server.ask().status == 200


def test_a_disconnect_ends_a_reply_at_once(live):
    server = live()
    for fields in ({'stream': True}, {}):
        server.engine.going.clear()
        client = server.send(tokens=400, **fields)
        server.wait(lambda: server.engine.open)
        client.close()
        begin = time.monotonic()
        server.wait(server.is_idle)
        assert time.monotonic() - begin < 0.5
        server.engine.going.set()


def damaged(rng: random.Random) -> tuple[bytes, bool]:
    """A request that is damaged on its way, and whether its sender then stops sending."""
    body = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200)))
    kind = b'Content-Type: application/json\r\n'
    length = b'Content-Length: %d\r\n' % len(body)
    chunked = kind + b'Transfer-Encoding: chunked\r\n'
    return rng.choice(
        [
            (kind + length + b'\r\n' + body, False),  # not JSON
            (kind + length + b'\r\n' + body[:-1], True),  # cut off
            (kind + length + b'Content-Length: 1\r\n\r\n' + body, False),
            (kind + b'Content-Length: -1\r\n\r\n' + body, False),
            (kind + b'Content-Length: 0x10\r\n\r\n' + body, False),
            (kind + b'Content-Length: %d\r\n\r\n' % (33 << 20) + body, False),
            (kind + b'Content-Length: %b\r\n\r\n' % (b'9' * 40) + body, False),
            (kind + length + b'Transfer-Encoding: chunked\r\n\r\n' + body, True),
            (chunked + b'\r\nzz\r\n' + body, False),
            (chunked + b'\r\nffffffffffffffffffff\r\n' + body, False),
            (chunked + b'\r\n%x\r\n' % (len(body) + 1) + body, True),
            (chunked + b'\r\n%x\r\n' % len(body) + body + b'xx', False),
            (kind + b'Transfer-Encoding: gzip\r\n\r\n' + body, False),
            (kind + b'Content-Encoding: gzip\r\n' + length + b'\r\n' + body, False),
            (b'Content-Type: \xff\x00\r\n' + length + b'\r\n' + body, False),
            (b'Content-Type: text/plain\r\n' + length + b'\r\n' + body, False),
            (b'Content-Type: application/json\r\n' * 2000 + length + b'\r\n' + body, False),
            (kind + b'X: ' + body.replace(b'\n', b'') + b'\r\n' + length + b'\r\n' + body, False),
            (kind + b'Connection: upgrade\r\nUpgrade: websocket\r\n' + length + b'\r\n' + body, False),
        ]
    )


def test_damaged_requests_are_refused_in_bounded_memory(live):
    server = live(body_timeout=0.3, head_timeout=0.3)
    rng = random.Random(0)
    server.ask()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        rest, stops = damaged(rng)
        client = server.connect()
        client.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n' + rest)
        if stops and rng.random() < 0.5:
            client.shutdown(socket.SHUT_WR)
        else:
            assert 400 <= read_response(client).status < 500, rest
        client.close()
    server.wait(server.is_idle)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 64 << 20
    assert server.engine.asked == 1
    assert server.ask().status == 200


def test_a_body_without_an_end_is_cut_off(live):
    server = live()
    client = server.connect()
    client.sendall(request_bytes(b'', 'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n'))
    chunk = b'100000\r\n' + b' ' * (1 << 20) + b'\r\n'
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = 0
    while sent < 100:
        try:
            client.sendall(chunk)
        except OSError:
            break
        sent += 1
    assert 32 <= sent < 60
    client.close()
    server.wait(server.is_idle)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 128 << 20
