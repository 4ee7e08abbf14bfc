"""Connections of clients: limits of their number and of the time that they may do nothing."""

import asyncio
import contextlib
import fcntl
import termios
from array import array
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.serving.options import ServerOptions
from vipllava_jax.serving.records import request_id
from vipllava_jax.serving.responses import error_response

STALLED = 'stalled'  # in `scope['state']` of a request whose reader took nothing in time


class Connection(H11Protocol):
    """A connection that is closed if no request arrives in time, or its reader takes nothing in time.

    What no application sees, such as invalid HTTP, is answered in JSON as well.
    """

    options: ServerOptions  # as `connection_class` sets them

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.options.connections:
            self._end(ApiError(503, 'the server has too many connections', code='too_many_connections'))
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for timer in (self._head_timer, self._write_timer):
            if timer:
                timer.cancel()

    # The head of a request

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._expect_head()
        elif self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.options.head_timeout, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            message = f'no complete head of a request arrived within {self.options.head_timeout:g} seconds'
            self._end(ApiError(408, message, code='timeout'))

    def _unsupported_upgrade_warning(self) -> None:
        """Answers clients that offer HTTP/2, as those of Java do with every request, without two warnings."""

    def send_400_response(self, msg: str) -> None:
        self._end(ApiError(400, 'the request is not valid HTTP/1.1', code='invalid_http'))

    def _end(self, error: ApiError) -> None:
        """Answers with an error and closes the connection; only closes it while a response is being sent."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = error_response(error, {'connection': 'close', 'x-request-id': request_id(None)})
            status, reason = response.status_code, HTTPStatus(response.status_code).phrase.encode()
            parts = [
                h11.Response(status_code=status, headers=response.raw_headers, reason=reason),
                h11.Data(data=bytes(response.body)),
                h11.EndOfMessage(),
            ]
            self.transport.write(b''.join(self.conn.send(part) or b'' for part in parts))
        self.transport.close()
        self._expect_reader()

    # The reader of a response

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()
            self._write_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_reader()

    def _expect_reader(self) -> None:
        """Watches a reader that has not taken all of what was written."""
        if self.transport.get_write_buffer_size() and self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self.options.send_timeout, self._check_reader, unread_bytes(self.transport)
            )

    def _check_reader(self, before: int) -> None:
        """Aborts the connection if its reader has taken nothing of `before` bytes."""
        self._write_timer = None
        if unread_bytes(self.transport) < before:
            self._expect_reader()
        else:
            if self.scope:
                self.scope['state'][STALLED] = True
            self.transport.abort()


def unread_bytes(transport: asyncio.Transport) -> int:
    """The bytes that were written and that the other side has not received.

    Those that the system holds count: it takes no more until a third of its megabytes have been received.
    """
    held = array('i', [0])
    with contextlib.suppress(OSError, ValueError):  # of a system without it, and of a closed socket
        fcntl.ioctl(transport.get_extra_info('socket').fileno(), termios.TIOCOUTQ, held)
    return transport.get_write_buffer_size() + held[0]


def connection_class(options: ServerOptions) -> type[Connection]:
    """The class of connections with these options, as uvicorn takes it."""
    return type('Connection', (Connection,), {'options': options})
