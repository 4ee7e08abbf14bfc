"""The endpoints that ask the engine: from the body of a request to its answer."""

import asyncio

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vipllava_jax.protocol.endpoints import Endpoint
from vipllava_jax.protocol.exchange import Exchange
from vipllava_jax.protocol.requests import remote_urls
from vipllava_jax.protocol.served import Served
from vipllava_jax.serving.asking import Asking
from vipllava_jax.serving.bodies import JSON, Grow
from vipllava_jax.serving.records import Record
from vipllava_jax.serving.responses import ignored_fields
from vipllava_jax.serving.state import Server
from vipllava_jax.serving.streams import EventStream, stream, whole


class Answering:
    """The ASGI application of one endpoint."""

    def __init__(self, server: Server, path: str, endpoint: Endpoint) -> None:
        self.server, self.path, self.endpoint = server, path, endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server, record = self.server, scope['record']
        record.endpoint = self.path
        server.metrics.arrived(self.path)
        with server.admit() as (engine, served), server.bodies.hold() as grow:
            server.check_queue(engine)
            exchange = await self.read(Headers(scope=scope), receive, grow, served, record)
            asking = Asking(engine, exchange.questions, server.wakeups, only_ends=not exchange.stream)
            record.replies = asking.replies
            watching = asyncio.create_task(asking.watch(receive))
            headers = ignored_fields(record.ignored)
            try:
                await server.in_thread(asking.ask)
                if exchange.stream:
                    await stream(server, asking, exchange, record, EventStream(send, headers))
                else:
                    data = await whole(server, asking, exchange)
                    await Response(data, headers=headers, media_type=JSON)(scope, receive, send)
            finally:
                watching.cancel()
                asking.close()

    async def read(
        self, headers: Headers, receive: Receive, grow: Grow, served: Served, record: Record
    ) -> Exchange:
        """Reads a request -> its questions; raises ApiError for an invalid one."""
        server = self.server
        request, ignored = await server.read(headers, receive, grow, self.endpoint.request)
        urls = remote_urls(request)
        fetched = await server.images.fetch(urls, grow) if urls else {}
        exchange = await server.in_thread(self.endpoint.exchange, request, served, record.id, fetched)
        record.exchange, record.ignored = exchange, ignored
        return exchange
