"""The ASGI application of a server: its routes, and what all requests have in common."""

import time
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vipllava_jax.messages import brief
from vipllava_jax.protocol.endpoints import ENDPOINTS
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.serving.access import Access
from vipllava_jax.serving.answering import Answering
from vipllava_jax.serving.bodies import Disconnected, check_lengths, has_body, is_small_body
from vipllava_jax.serving.connections import STALLED
from vipllava_jax.serving.information import Information
from vipllava_jax.serving.page_files import FOLDER, PageFiles
from vipllava_jax.serving.previewing import Previewing
from vipllava_jax.serving.records import Record, request_id
from vipllava_jax.serving.responses import error_response, refuse, skip_body
from vipllava_jax.serving.state import Server

REFUSALS = (401, 403, 429, 503)  # statuses of requests that were refused whatever they ask
QUIET_PATHS = ('/health', '/ready', '/metrics', '/page/')  # asked for all the time, and not logged


def create_app(server: Server) -> Starlette:
    """The application that answers for a server."""
    about, page = Information(server), PageFiles(server)
    routes = [
        *(
            Route(path, Answering(server, path, endpoint), methods=['POST'])
            for path, endpoint in ENDPOINTS.items()
        ),
        Route('/v1/preview', Previewing(server), methods=['POST']),
        Route('/tokenize', about.tokenize, methods=['POST']),
        Route('/v1/models', about.models),
        Route('/v1/models/{id:path}', about.model),
        Route('/health', about.health),
        Route('/ready', about.ready),
        Route('/version', about.version),
        Route('/metrics', about.metrics),
        Route('/openapi.json', about.openapi),
        Route('/', page.index),
        Route(f'/{FOLDER}/about.json', page.about),
        Route(f'/{FOLDER}/example.png', page.example),
        Route(f'/{FOLDER}/{{name}}', page.file),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Reception, server=server)],
        exception_handlers={HTTPException: raise_again},
    )
    app.router.redirect_slashes = False
    return app


async def raise_again(request: Request, error: Exception) -> Response:
    """Leaves an error of Starlette to `Reception`."""
    raise error


class Reception:
    """Receives each request: gives it an id, checks its access, writes errors as JSON, and logs it."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server, self.access = app, server, Access(server.options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope['type'] != 'http':
            raise RuntimeError(f'the server does not speak {scope["type"]}')
        headers = Headers(scope=scope)
        record = scope['record'] = Record(request_id(headers.get('x-request-id')))
        unread = has_body(headers)

        async def receive_body() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get('more_body', False)
            return message

        async def send_with_headers(message: Message) -> None:
            if message['type'] == 'http.response.start':
                record.status = message['status']
                response = MutableHeaders(scope=message)
                response['x-request-id'] = record.id
                self.access.add_headers(response, headers)
                if self.server.is_draining:
                    response['connection'] = 'close'
            await send(message)

        try:
            response = await self.respond(scope, receive_body, send_with_headers)
            if response and unread and response.status_code in REFUSALS and is_small_body(headers):
                await skip_body(receive_body)
            if response and unread:
                await refuse(response, receive, send_with_headers)
            elif response:
                await response(scope, receive, send_with_headers)
        finally:
            self.ended(scope, record)

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Answers a request; returns the response to be sent if it was refused."""
        record, headers = scope['record'], Headers(scope=scope)
        try:
            if response := self.access.preflight(scope['method'], headers):  # which has no key
                return response
            check_lengths(headers)
            self.access.check(scope['path'], headers)
            await self.app(scope, receive, send)
        except Disconnected:
            record.why = 'slow_reader' if scope.get('state', {}).get(STALLED) else 'disconnected'
        except HTTPException as error:
            record.failed(ApiError(error.status_code, explain(error, scope), code=code(error)))
            return error_response(record.error, dict(error.headers or {}))
        except Exception as error:
            if record.status:
                raise
            record.failed(self.server.explain(error, record.exchange))
            return error_response(record.error)
        return None

    def ended(self, scope: Scope, record: Record) -> None:
        """Counts and logs a request."""
        server, error = self.server, record.error
        if error and error.status in REFUSALS and not record.replies:
            server.metrics.rejected(error.code or str(error.status))
        if record.endpoint:
            replies = record.replies
            server.metrics.ended(record.endpoint, record.exchange, replies, record.status, record.why)
        if error or not scope['path'].startswith(QUIET_PATHS):
            server.log.request(
                record.id,
                scope['method'],
                scope['path'],
                record.status,
                time.perf_counter() - record.begin,
                record.replies,
                error,
                record.prompt() if server.options.log_prompts else None,
                (scope.get('client') or ('', 0))[0],
            )


def explain(error: HTTPException, scope: Scope) -> str:
    """The message of an error of routing."""
    if error.status_code == 405:
        allowed = (error.headers or {}).get('Allow', '')
        return f'{brief(scope["method"])} is not a method of {brief(scope["path"])}: use {allowed}'
    if error.status_code == 404:
        return f'there is no path {brief(scope["path"])}: GET /openapi.json describes those that there are'
    return error.detail


def code(error: HTTPException) -> str:
    """'not_found' for 404."""
    return HTTPStatus(error.status_code).phrase.lower().replace(' ', '_')
