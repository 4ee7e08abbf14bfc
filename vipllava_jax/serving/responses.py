"""Responses in JSON, also for errors."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Send

from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.serving.bodies import JSON

LINGER_SECONDS, LINGER_BYTES = 2.0, 8 << 20  # for which the body of a refused request is still read


def json_response(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with data as JSON."""
    return Response(msgspec.json.encode(data), status, headers, JSON)


def error_response(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    """The response for an error."""
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers['retry-after'] = str(error.retry_after)
    if error.status == 401:
        headers['www-authenticate'] = 'Bearer'
    return json_response(error.body(), error.status, headers)


def ignored_fields(names: Sequence[str]) -> dict[str, str]:
    """The header that names the fields of a request that have no effect; none without such fields."""
    # a header neither begins nor ends with a space
    return {'x-ignored-fields': ', '.join(names).strip()} if names else {}


async def skip_body(receive: Receive) -> None:
    """Reads a small body that nobody needs, for some time, so that its connection can be used again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get('more_body', False):
                pass


async def refuse(response: Response, receive: Receive, send: Send) -> None:
    """Sends a whole response to a request whose body was not read, and then closes the connection.

    Part of the body is read first, because what has arrived and was not read would make the system reset the
    connection, and a client that is still sending would not see the response.
    """
    headers = [*response.raw_headers, (b'connection', b'close')]
    await send({'type': 'http.response.start', 'status': response.status_code, 'headers': headers})
    await send({'type': 'http.response.body', 'body': response.body, 'more_body': True})
    left, more = LINGER_BYTES, True
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while more and left > 0:
                message = await receive()
                left -= len(message.get('body', b''))
                more = message.get('more_body', False)
    await send({'type': 'http.response.body', 'body': b''})
