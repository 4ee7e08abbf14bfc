"""Reads the bodies of requests, within limits of size, memory and time."""

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import Receive

from vipllava_jax.messages import amount, brief
from vipllava_jax.protocol.errors import ApiError

JSON = 'application/json'
SMALL = 1 << 16  # bytes
Grow = Callable[[int], None]


class Disconnected(Exception):
    """The client has closed its connection: nobody reads an answer."""


class BodyMemory:
    """The memory of the bodies of all requests that are not answered yet, because their pictures are kept."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0  # bytes

    @contextmanager
    def hold(self) -> Iterator[Grow]:
        """Yields a function that takes so many more bytes for one request, until the end of the block.

        The function raises ApiError (429) if the memory is used up.
        """
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            if self.used + size > self.limit:
                message = 'the server holds too much of other requests: send it again later'
                raise ApiError(429, message, code='too_many_bytes', retry_after=1)
            self.used += size
            held += size

        try:
            yield grow
        finally:
            self.used -= held


async def read_body(headers: Headers, receive: Receive, limit: int, seconds: float, grow: Grow) -> bytes:
    """The body of a request of at most `limit` bytes, for which `grow` takes memory as it arrives.

    Raises ApiError for a body that is not declared as JSON (415), too large (413) or too slow (408), and
    Disconnected if the client is gone.
    """
    check_type(headers)
    declared = declared_length(headers)
    if declared > limit:
        raise too_large(limit)
    grow(declared)  # refuses what has no room now; kept, it would cost others room and its client nothing
    grow(-declared)
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message['type'] == 'http.disconnect':
                    raise Disconnected
                parts.append(message.get('body', b''))
                size += len(parts[-1])
                if size > limit:
                    raise too_large(limit)
                grow(len(parts[-1]))
                if not message.get('more_body', False):
                    return b''.join(parts)
    except TimeoutError:
        raise ApiError(408, f'the body did not arrive within {seconds:g} seconds', code='timeout') from None


def check_lengths(headers: Headers) -> None:
    """Raises ApiError (400) for a body of two lengths: a proxy in front may have taken the other one."""
    if 'content-length' in headers and 'transfer-encoding' in headers:
        message = 'the request has both Content-Length and Transfer-Encoding: send one of them'
        raise ApiError(400, message, code='invalid_http')


def check_type(headers: Headers) -> None:
    """Raises ApiError (415) for anything but plain JSON, which a web page cannot send to other servers."""
    found = headers.get('content-type', '')
    if found.partition(';')[0].strip().lower() != JSON:
        raise ApiError(
            415,
            f'the Content-Type is {brief(found) if found else "missing"}: send JSON, as {JSON}',
            code='unsupported_media_type',
        )
    encoding = headers.get('content-encoding', 'identity')
    if encoding.strip().lower() != 'identity':
        message = f'the Content-Encoding is {brief(encoding)}: send the JSON as it is'
        raise ApiError(415, message, code='unsupported_media_type')


def declared_length(headers: Headers) -> int:
    """The length that the client has declared; 0 for none, or for what the HTTP server refuses itself."""
    text = headers.get('content-length', '')
    return int(text) if re.fullmatch('[0-9]{1,18}', text) else 0


def has_body(headers: Headers) -> bool:
    """Whether a body follows the head of a request."""
    return declared_length(headers) > 0 or 'transfer-encoding' in headers


def is_small_body(headers: Headers) -> bool:
    """Whether a body has mostly arrived with its head; its client does not ask first whether to send it."""
    return 0 < declared_length(headers) <= SMALL and 'expect' not in headers


def too_large(limit: int) -> ApiError:
    message = f'the body is larger than {amount(limit)}: send fewer or smaller pictures'
    return ApiError(413, message, code='request_too_large')
