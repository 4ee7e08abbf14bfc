"""The endpoint /v1/preview: draws marks on a picture as the engine does, and asks nothing."""

import asyncio
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from vipllava_jax.engine.picture_worker import Prepared
from vipllava_jax.engine.question import QuestionError
from vipllava_jax.protocol.errors import api_error
from vipllava_jax.protocol.previews import preview_body, preview_question
from vipllava_jax.protocol.requests import PreviewRequest
from vipllava_jax.serving.bodies import Disconnected
from vipllava_jax.serving.responses import ignored_fields, json_response
from vipllava_jax.serving.state import Server

PARAMS = {'images': 'image'}  # the field of the request that the picture of a question comes from


class Previewing:
    """The ASGI application of the endpoint."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = self.server
        with server.admit() as (engine, served), server.bodies.hold() as grow:
            request, ignored = await server.read(Headers(scope=scope), receive, grow, PreviewRequest)
            question = await server.in_thread(preview_question, request, served)
            drawing = server.previews.submit(question, engine.model.processor.image_settings)
            try:
                prepared = await unless_gone(asyncio.wrap_future(drawing), receive)
            except QuestionError as error:
                raise api_error(error, PARAMS) from None
            body = await server.in_thread(preview_body, prepared.pixels, prepared.warnings)
            await json_response(body, headers=ignored_fields(ignored))(scope, receive, send)


async def unless_gone(work: asyncio.Future[Prepared], receive: Receive) -> Prepared:
    """The result of work, which is cancelled with Disconnected if the client goes away meanwhile."""
    gone = asyncio.ensure_future(receive())  # after the body, the only message is that of the end
    either: set[asyncio.Future[Any]] = {work, gone}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Disconnected
        return work.result()
    finally:
        gone.cancel()
        work.cancel()
