"""A server that listens on a port, in a thread of the tests, and clients for it."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.serving.fakes import PATH
from vipllava_jax.serving.options import ServerOptions
from vipllava_jax.serving.process import serve
from vipllava_jax.serving.sockets import bound_socket
from vipllava_jax.serving.state import Server

JSON = {'Content-Type': 'application/json'}


class Response(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error."""
        return self.json['error']['code']

    @property
    def events(self) -> list[Any]:
        """The events of a stream, without comments."""
        parts = [part for part in self.body.decode().split('\n\n') if part.startswith('data: ')]
        return [part[6:] if part[6:] == '[DONE]' else json.loads(part[6:]) for part in parts]


class Live(NamedTuple):
    server: Server
    port: int
    engine: Any
    loop: asyncio.AbstractEventLoop

    def ask(
        self, method: str = 'POST', path: str = PATH, headers: dict[str, str] = JSON, **fields: Any
    ) -> Response:
        """Sends a request whose body has these fields, and reads the whole response."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=20)
        try:
            connection.request(method, path, json.dumps(fields) if method == 'POST' else None, headers)
            response = connection.getresponse()
            return Response(response.status, response.headers, response.read())
        finally:
            connection.close()

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        client = socket.socket()
        client.settimeout(20)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(('127.0.0.1', self.port))
        return client

    def send(self, **fields: Any) -> socket.socket:
        """Sends a request, and leaves its response to the caller."""
        client = self.connect()
        client.sendall(request_bytes(json.dumps(fields).encode()))
        return client

    def run(self, work: Any) -> Any:
        """The result of a coroutine in the loop of the server."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def wait(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Waits until something is true; AssertionError if that takes too long."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, 'waited in vain'
            time.sleep(0.005)

    def is_idle(self) -> bool:
        """Whether nothing is left of all requests."""
        stats = self.engine.stats()
        left = stats.running + stats.waiting + stats.preparing
        return not self.server.open and not self.server.bodies.used and not left


def request_bytes(body: bytes, head: str = '', path: str = PATH) -> bytes:
    """A request as it is sent; `head` replaces the lines about the body."""
    head = head or f'Content-Type: application/json\r\nContent-Length: {len(body)}\r\n'
    return f'POST {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n'.encode() + body


def read_all(client: socket.socket) -> bytes:
    """What a server sends until it closes the connection."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b''.join(parts)


def read_until(client: socket.socket, end: bytes) -> bytes:
    """What a server sends until it has sent these bytes."""
    found = b''
    while end not in found and (part := client.recv(65536)):
        found += part
    return found


def read_what_is_there(client: socket.socket) -> bytes:
    """What a server sends until it pauses."""
    parts = []
    client.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while part := client.recv(65536):
            parts.append(part)
    return b''.join(parts)


def read_status(client: socket.socket) -> int:
    """The status of the next response; its head comes in one part."""
    return int(client.recv(65536).split(b' ', 2)[1])


def read_response(client: socket.socket) -> Response:
    """The next response, while the connection stays open."""
    response = http.client.HTTPResponse(client)
    response.begin()
    return Response(response.status, response.headers, response.read())


@contextmanager
def live_server(options: ServerOptions, start: Callable[[Any], Any], wait: bool = True) -> Iterator[Live]:
    """A server in a thread; `wait` says whether until it is ready. Raises its error after the block."""
    started, ready, found = threading.Event(), threading.Event(), {}

    async def main() -> None:
        found['server'] = server = Server(options, start)
        found['loop'] = asyncio.get_running_loop()
        found['task'] = asyncio.current_task()
        with bound_socket(options) as bound:
            found['port'] = 0 if options.uds else bound.getsockname()[1]
            started.set()
            try:
                await serve(server, bound, lambda url: ready.set())
            finally:
                server.close()

    def work() -> None:
        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except Exception as error:
            found['error'] = error

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(60)
    assert not wait or ready.wait(60)
    try:
        yield Live(found['server'], found['port'], found['server'].engine, found['loop'])
    finally:
        if not found['loop'].is_closed():
            found['loop'].call_soon_threadsafe(found['task'].cancel)
        thread.join(60)
        assert not thread.is_alive()
    if 'error' in found:
        raise found['error']
