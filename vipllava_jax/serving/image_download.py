"""Downloads one picture over HTTP/1.1 from an address that has been checked."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

import h11

from vipllava_jax.version import __version__

CONNECT_SECONDS = 3.0  # for each address of a host
READ_BYTES = 1 << 16
HEADER_BYTES = 1 << 14
PARTS = 1000, 256  # a response has at most 1000 parts, and one more for each 256 bytes


class DownloadError(Exception):
    """A picture that cannot be downloaded; the message says what its host does, and quotes nothing of it."""


class Location(NamedTuple):
    """Where a URL leads."""

    scheme: str  # 'https' or 'http'
    host: str  # a name in lower case
    port: int
    target: str  # the path and the query

    @property
    def host_header(self) -> str:
        return self.host if self.port == DEFAULT_PORTS[self.scheme] else f'{self.host}:{self.port}'


DEFAULT_PORTS = {'https': 443, 'http': 80}
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def download(
    location: Location, addresses: Sequence[str], certificates: ssl.SSLContext, limit: int
) -> bytes:
    """The content at a location, of at most `limit` bytes, from the first of `addresses` that accepts.

    The name of the host is only used to check the certificate and in the header, and is not resolved. Raises
    DownloadError for anything but a complete response with the status 200.
    """
    async with _connected(location, addresses, certificates) as (reader, writer):
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_BYTES)
        try:
            writer.write(connection.send(_request(location)) or b'')
            writer.write(connection.send(h11.EndOfMessage()) or b'')
            return await _content(connection, reader, limit)
        except h11.RemoteProtocolError:
            raise DownloadError('sends no complete response as HTTP/1.1 defines it') from None
        except OSError:
            raise DownloadError('has closed the connection') from None


@contextlib.asynccontextmanager
async def _connected(
    location: Location, addresses: Sequence[str], certificates: ssl.SSLContext
) -> AsyncIterator[Streams]:
    """A connection to the first address that accepts one."""
    reader, writer = await _connect(location, addresses, certificates)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()  # without waiting for the host to say goodbye


async def _connect(location: Location, addresses: Sequence[str], certificates: ssl.SSLContext) -> Streams:
    tls: dict[str, Any] = {}
    if location.scheme == 'https':
        tls = {'ssl': certificates, 'server_hostname': location.host}
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await asyncio.open_connection(address, location.port, limit=READ_BYTES, **tls)
        except ssl.SSLCertVerificationError as error:
            raise DownloadError(f'has no valid certificate: {error.verify_message}') from None
        except OSError:  # a timeout is one, too
            continue
    raise DownloadError('accepts no connection')


def _request(location: Location) -> h11.Request:
    headers = {
        'Host': location.host_header,
        'User-Agent': f'vipllava-jax/{__version__}',
        'Accept': 'image/*',
        'Accept-Encoding': 'identity',
        'Connection': 'close',
    }
    return h11.Request(method='GET', target=location.target, headers=[*headers.items()])


async def _content(connection: h11.Connection, reader: asyncio.StreamReader, limit: int) -> bytes:
    """The content of the response, whatever length it says it has."""
    content, parts = bytearray(), 0
    while not isinstance(event := await _next_event(connection, reader), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            _check(event)
        elif isinstance(event, h11.Data):
            content += event.data
        parts += 1
        if len(content) > limit:
            raise DownloadError(f'sends a picture of more than {limit} bytes')
        if parts > PARTS[0] + len(content) // PARTS[1]:  # each costs time, in which nobody else is served
            raise DownloadError('sends the picture in too many small parts')
    return bytes(content)


async def _next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Event:
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(READ_BYTES))
    if not isinstance(event, h11.Event):  # paused, which only a switch of protocols does
        raise h11.RemoteProtocolError('unexpected state')
    return event


def _check(response: h11.Response) -> None:
    """Raises DownloadError for a response that is not a picture as it is."""
    status = response.status_code
    if 300 <= status < 400:
        raise DownloadError(f'redirects (status {status}), which is not followed: give the final URL')
    if status != 200:
        raise DownloadError(f'answers with the status {status}')
    for name, value in response.headers:
        if name == b'content-encoding' and value.lower() != b'identity':
            raise DownloadError('sends compressed content (Content-Encoding), which is not read')
