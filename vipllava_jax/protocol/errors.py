"""Errors as OpenAI's API writes them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vipllava_jax.engine.question import QuestionError, QueueFull
from vipllava_jax.messages import printable

NO_PARAMS: Mapping[str, str] = MappingProxyType({})
TYPES = {
    400: 'invalid_request_error',
    401: 'authentication_error',
    404: 'not_found_error',
    408: 'timeout_error',
    413: 'request_too_large',
    429: 'rate_limit_error',
    503: 'service_unavailable',
}


class ApiError(Exception):
    """An error for the client: an HTTP status, a message, the field of the request, and a code.

    Clients send a request again after 408, 409, 429 and 5xx, so a request that fails for ever has another.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, printable(message), param, code
        self.retry_after = retry_after  # seconds

    @property
    def type(self) -> str:
        default = 'server_error' if self.status >= 500 else 'invalid_request_error'
        return TYPES.get(self.status, default)

    def body(self) -> dict[str, Any]:
        """The JSON of the error."""
        error = {'message': self.message, 'type': self.type, 'param': self.param, 'code': self.code}
        return {'error': error}


def api_error(error: BaseException, params: Mapping[str, str] = NO_PARAMS) -> ApiError:
    """The error for the client after an error of the engine or of a question.

    `params` are the fields of the request by the parts of questions that they become.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QuestionError):
        return ApiError(400, str(error), params.get(error.part))
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code='queue_full', retry_after=1)
    return ApiError(500, 'the server has failed to answer; its log says why', code='internal_error')
