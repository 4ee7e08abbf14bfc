"""The endpoints that do not ask the engine: the model, the state of the server, its documents."""

from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import Response

from vipllava_jax.protocol.models import model_entry, model_list
from vipllava_jax.protocol.openapi import openapi
from vipllava_jax.protocol.requests import TokenizeRequest
from vipllava_jax.protocol.tokenizing import tokenize
from vipllava_jax.serving.responses import ignored_fields, json_response
from vipllava_jax.serving.state import Server
from vipllava_jax.version import __version__


class Information:
    """What can be asked of a server about itself."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def health(self, request: Request) -> Response:
        """200 while the process works, also while it loads; 503 after the engine has failed."""
        phase = self.server.phase
        return json_response({'status': phase}, 503 if phase == 'failed' else 200)

    async def ready(self, request: Request) -> Response:
        """200 while requests are answered; 503 before and afterwards, with the progress of loading."""
        phase = self.server.phase
        body: dict[str, object] = {'status': phase}
        if phase == 'loading':
            body['stage'], body['done'], body['total'] = self.server.progress
        return json_response(body, 200 if phase == 'ready' else 503)

    async def version(self, request: Request) -> Response:
        versions = {'version': __version__, 'jax': version('jax'), 'model': self.server.options.name}
        return json_response(versions)

    async def metrics(self, request: Request) -> Response:
        metrics = self.server.metrics
        return Response(metrics.render(), headers={'content-type': metrics.content_type})

    async def models(self, request: Request) -> Response:
        _, served = self.server.ready()
        return json_response(model_list(served))

    async def model(self, request: Request) -> Response:
        _, served = self.server.ready()
        return json_response(model_entry(served, request.path_params['id']))

    async def openapi(self, request: Request) -> Response:
        _, served = self.server.ready()
        return json_response(await self.server.in_thread(openapi, served))

    async def tokenize(self, request: Request) -> Response:
        server = self.server
        with server.admit() as (_, served), server.bodies.hold() as grow:
            asked, ignored = await server.read(request.headers, request.receive, grow, TokenizeRequest)
            body = await server.in_thread(tokenize, asked, served)
            return json_response(body, headers=ignored_fields(ignored))
