"""Who may call the server: API keys, names of this computer, and origins of web pages."""

import hmac
import re
from hashlib import sha256

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

from vipllava_jax.messages import brief
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.serving.options import ServerOptions, is_loopback

OPEN = frozenset(('/', '/health', '/ready', '/version', '/metrics'))  # paths that need no API key
OPEN_FOLDER = '/page/'  # of the files of the page at /
HOST = re.compile(r'(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:[0-9]+)?')
HEADER_NAMES = re.compile('[A-Za-z0-9, -]{1,2000}')
EXPOSED = 'x-request-id, x-ignored-fields, retry-after'
SECURITY = {
    'x-content-type-options': 'nosniff',
    'x-frame-options': 'DENY',
    'referrer-policy': 'no-referrer',
    'cache-control': 'no-store',
}


class Access:
    """Checks requests before anything else is done for them."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._keys = [_digest(key.encode()) for key in options.api_keys]

    def check(self, path: str, headers: Headers) -> None:
        """Raises ApiError for a request without a valid key (401), or to a foreign host name (403)."""
        if self._options.needs_loopback_name:
            check_host(headers.get('host', ''))
        elif self._keys and path not in OPEN and not path.startswith(OPEN_FOLDER):
            self._check_key(headers.get('authorization', ''))

    def _check_key(self, authorization: str) -> None:
        scheme, _, given = authorization.partition(' ')
        digest = _digest(given.strip().encode('latin-1'))
        matches = [hmac.compare_digest(digest, key) for key in self._keys]  # all, for equal times
        if scheme.lower() != 'bearer' or not any(matches):
            found = 'is not valid' if authorization else 'is missing'
            message = f'the API key {found}: send it in the header Authorization: Bearer KEY'
            raise ApiError(401, message, code='invalid_api_key')

    def preflight(self, method: str, headers: Headers) -> Response | None:
        """The answer to the question of a browser whether a page may call the server; None for others."""
        if method != 'OPTIONS' or not {'origin', 'access-control-request-method'} <= {*headers}:
            return None
        asked = headers.get('access-control-request-headers', '')
        allowed = {
            'access-control-allow-methods': 'GET, POST',
            'access-control-allow-headers': asked if HEADER_NAMES.fullmatch(asked) else 'content-type',
            'access-control-max-age': '600',
        }
        return Response(status_code=204, headers=allowed if self._allows(headers['origin']) else None)

    def add_headers(self, response: MutableHeaders, headers: Headers) -> None:
        """Adds the headers of all responses, and those that let a page of an allowed origin read it."""
        for name, value in SECURITY.items():
            response.setdefault(name, value)
        if not self._options.origins:
            return
        response.add_vary_header('Origin')
        if self._allows(origin := headers.get('origin', '')):
            response['access-control-allow-origin'] = origin
            response['access-control-expose-headers'] = EXPOSED

    def _allows(self, origin: str) -> bool:
        return bool(origin) and not {origin, '*'}.isdisjoint(self._options.origins)


def check_host(host: str) -> None:
    """Raises ApiError (403) unless the Host header names this computer.

    A web page whose name was made to resolve to this computer would otherwise be of the same origin.
    """
    match = HOST.fullmatch(host)
    if not match or not is_loopback(match[1]):
        raise ApiError(
            403,
            f'the Host header is {brief(host)}: without an API key, the server answers only to localhost and '
            '127.0.0.1; start it with --api-key for other names',
            code='foreign_host',
        )


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
