"""Answers a request, whole or as server-sent events, and notices when its client is gone."""

import asyncio
from typing import Any

import msgspec
from starlette.types import Send

from vipllava_jax.protocol.exchange import Exchange
from vipllava_jax.serving.asking import Asking
from vipllava_jax.serving.bodies import Disconnected
from vipllava_jax.serving.records import Record
from vipllava_jax.serving.state import Server

WAITING = b': waiting\n\n'  # a comment, which keeps proxies from closing the connection
DONE = b'data: [DONE]\n\n'


class EventStream:
    """A response of server-sent events, which starts with the first of them."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send = send
        self._headers = {**headers, 'content-type': 'text/event-stream; charset=utf-8'}
        self.is_started = False
        self.last = asyncio.get_running_loop().time()  # of the last write

    async def write(self, lines: list[bytes], more: bool = True) -> None:
        """Sends events as one part, and waits if the client does not take them."""
        if not self.is_started:
            self.is_started = True
            headers = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            await self._send({'type': 'http.response.start', 'status': 200, 'headers': headers})
        await self._send({'type': 'http.response.body', 'body': b''.join(lines), 'more_body': more})
        self.last = asyncio.get_running_loop().time()


async def stream(
    server: Server, asking: Asking, exchange: Exchange, record: Record, out: EventStream
) -> None:
    """Sends the answers as events while they arrive.

    An error before the first event is raised. A later one is an event, after which the stream ends without
    [DONE]. Raises Disconnected if the client is gone.
    """
    lines = [encode(event) for event in exchange.opening()]
    draws = any(question.keep_images for question in exchange.questions)

    def write(changed: list[int]) -> None:
        for index in changed:
            for piece in asking.pieces(index):
                lines.extend(map(encode, exchange.events(index, asking.replies[index], piece)))

    try:
        while not asking.is_complete:
            changed = await asking.news(server.options.quiet)
            await ask_more(server, asking)
            if draws:  # a picture into an event, which takes so long that others would wait
                await server.in_thread(write, changed)
            else:
                write(changed)
            if not changed and asyncio.get_running_loop().time() - out.last >= server.options.quiet:
                lines.append(WAITING)
            if lines and (changed or lines[-1] is WAITING):
                await out.write(lines)
                lines.clear()
        lines += [*map(encode, exchange.closing(asking.replies)), DONE]
    except Disconnected:
        raise
    except Exception as error:
        if not out.is_started:
            raise
        explained = server.explain(error, exchange)
        record.failed(explained)
        lines.append(encode(explained.body()))
    await out.write(lines, more=False)


async def whole(server: Server, asking: Asking, exchange: Exchange) -> bytes:
    """Waits for all answers -> the JSON of the response; raises the error of a reply that has failed."""
    while not asking.is_complete:
        changed = await asking.news(server.options.quiet)
        await ask_more(server, asking)
        for index in changed:
            asking.check(index)
    return await server.in_thread(lambda: msgspec.json.encode(exchange.body(asking.replies)))


async def ask_more(server: Server, asking: Asking) -> None:
    """Asks the questions for which the queue had no room before."""
    if asking.is_time_to_ask:
        await server.in_thread(asking.ask_more)


def encode(event: dict[str, Any]) -> bytes:
    """An event as it is sent."""
    return b'data: %b\n\n' % msgspec.json.encode(event)
