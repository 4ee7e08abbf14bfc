"""The endpoints that ask the engine: from the body of a request to its answer."""

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vipllava_jax.protocol.endpoints import Endpoint
from vipllava_jax.protocol.exchange import Exchange
from vipllava_jax.protocol.requests import GenerationRequest, read_request, remote_urls
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
            asking = Asking(engine, server.wakeups)
            record.replies = asking.replies
            body = await server.body(Headers(scope=scope), receive, grow)
            with server.place_for(asking):
                watching = asyncio.create_task(asking.watch(receive))
                try:
                    exchange = await self.ask(body, asking, served, record, grow)
                    del body  # the questions have its pictures
                    headers = ignored_fields(record.ignored)
                    if exchange.stream:
                        await stream(server, asking, exchange, record, EventStream(send, headers))
                    else:
                        data = await whole(server, asking, exchange)
                        await Response(data, headers=headers, media_type=JSON)(scope, receive, send)
                finally:
                    watching.cancel()
                    asking.close()

    async def ask(self, body: bytes, asking: Asking, served: Served, record: Record, grow: Grow) -> Exchange:
        """Reads a request and asks its questions; raises ApiError for an invalid one, and errors of `Asking`.

        If it names no URLs, all this is one task of a thread: a second one would wait until all other
        requests that have arrived are read, and the engine with it. Raises Disconnected if the client has
        gone before its turn.
        """
        server = self.server

        def read() -> tuple[GenerationRequest, Exchange | None]:
            asking.check_client()
            request, record.ignored = read_request(body, self.endpoint.request)
            return request, None if remote_urls(request) else ask(request, {})

        def ask(request: GenerationRequest, fetched: Mapping[str, bytes]) -> Exchange:
            record.exchange = exchange = self.endpoint.exchange(request, served, record.id, fetched)
            asking.ask(exchange.questions, only_ends=not exchange.stream)
            return exchange

        request, exchange = await server.in_thread(read)
        if exchange is None:
            fetched = await server.images.fetch(remote_urls(request), grow)
            exchange = await server.in_thread(ask, request, fetched)
        return exchange
