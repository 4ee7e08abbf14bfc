"""Fetches the pictures that requests name by URL, from the hosts that the operator has allowed.

A URL is read once: what is compared with the allowed hosts is what is connected to, so that no two readers
can understand it differently. A name is resolved once, and only its checked addresses are connected to.
"""

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

from vipllava_jax.messages import brief
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.served import Limits
from vipllava_jax.serving.bodies import Grow
from vipllava_jax.serving.image_download import DEFAULT_PORTS, DownloadError, Location, download
from vipllava_jax.serving.public_addresses import is_public

SECONDS = 10.0  # for one picture, all in all
AT_ONCE = 8  # pictures that are fetched at the same time
URL_CHARACTERS = 2048
NAME = r'[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*'
RULE = re.compile(rf'(?:(https?)://)?((?:\*\.)?{NAME})(?::(\d{{1,5}}))?/?', re.ASCII | re.IGNORECASE)
URL = re.compile(  # as in RFC 3986; no user names, no backslashes, no spaces, nothing that is not ASCII
    rf"(https?)://({NAME})(?::(\d{{1,5}}))?((?:/[\w\-.~%!$&'()*+,;=:@/]*)?(?:\?[\w\-.~%!$&'()*+,;=:@/?]*)?)"
    r'(?:#[!-~]*)?',
    re.ASCII | re.IGNORECASE,
)


class AllowedHost(NamedTuple):
    """A host from which pictures may be fetched."""

    scheme: str
    name: str  # in lower case; '*.example.com' stands for all names below example.com
    port: int

    def matches(self, location: Location) -> bool:
        same_name = location.host == self.name
        if self.name.startswith('*.'):
            same_name = location.host.endswith(self.name[1:])
        return same_name and (location.scheme, location.port) == (self.scheme, self.port)


class ImageHosts:
    """Fetches pictures by URL from allowed hosts, such as 'example.com' or 'http://*.example.com:8080'.

    Only https is used unless a host is given with http://. Raises ValueError for what is not a host.
    """

    def __init__(self, hosts: Sequence[str], limits: Limits) -> None:
        self.allowed, self.limits = tuple(map(read_host, hosts)), limits
        self._at_once = asyncio.Semaphore(AT_ONCE)
        # Threads of their own: a name server that does not answer must not take those of other work.
        self._resolvers = ThreadPoolExecutor(AT_ONCE, 'image host names')

    async def fetch(self, urls: Sequence[str], grow: Grow) -> dict[str, bytes]:
        """The contents of the pictures by URL, for which `grow` takes memory as they arrive.

        Raises ApiError if one of them cannot be fetched.
        """
        if len(urls) > self.limits.pictures:
            raise _error(f'there are URLs of {len(urls)} pictures: give at most {self.limits.pictures}')
        locations = [self._allowed_location(url) for url in urls]
        tasks = [asyncio.ensure_future(self._fetch(location, grow)) for location in locations]
        try:
            contents = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        if sum(map(len, contents)) > self.limits.body_bytes:
            raise _error(f'the pictures have more than {self.limits.body_bytes} bytes together')
        return dict(zip(urls, contents, strict=True))

    async def resolve(self, host: str, port: int) -> list[str]:
        """The addresses of a host; OSError if it has none."""
        args = host, port, socket.AF_UNSPEC, socket.SOCK_STREAM
        found = await asyncio.get_running_loop().run_in_executor(self._resolvers, socket.getaddrinfo, *args)
        return [str(address[0]) for *_, address in found]

    def is_safe(self, address: str) -> bool:
        """Whether the server may connect to an address."""
        return is_public(address)

    @cached_property
    def certificates(self) -> ssl.SSLContext:
        """The certificates that are trusted: those of the system."""
        return ssl.create_default_context()

    def close(self) -> None:
        """Waits until no name is being resolved."""
        self._resolvers.shutdown(cancel_futures=True)

    def _allowed_location(self, url: str) -> Location:
        location = read_url(url)
        if not any(host.matches(location) for host in self.allowed):
            raise _error(
                f'{location.scheme}://{location.host_header} is not among the hosts from which pictures are '
                'fetched: give the picture as a data URI, or ask the operator to allow the host '
                '(--allow-image-host)'
            )
        return location

    async def _fetch(self, location: Location, grow: Grow) -> bytes:
        async with self._turn():
            try:
                async with asyncio.timeout(SECONDS):
                    addresses = await self._safe_addresses(location)
                    limit = self.limits.picture_bytes
                    content = await download(location, addresses, self.certificates, limit)
            except DownloadError as error:
                raise _error(f'the host of a picture, {location.host}, {error}') from None
            except TimeoutError:
                raise _error(f'a picture from {location.host} took longer than {SECONDS:g} seconds') from None
        grow(len(content))
        return content

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Waits until few enough pictures are being fetched; ApiError after some time."""
        try:
            async with asyncio.timeout(SECONDS):
                await self._at_once.acquire()
        except TimeoutError:
            message = 'too many pictures are being fetched: ask again later'
            raise ApiError(503, message, retry_after=1) from None
        try:
            yield
        finally:
            self._at_once.release()

    async def _safe_addresses(self, location: Location) -> list[str]:
        try:
            addresses = await self.resolve(location.host, location.port)
        except (OSError, UnicodeError):
            raise DownloadError('has no address') from None
        if not all(map(self.is_safe, addresses)):
            raise DownloadError('has an address that is not public')
        return addresses


def read_host(text: str) -> AllowedHost:
    """'example.com', 'http://*.example.com:8080' -> the host; ValueError for anything else."""
    found = RULE.fullmatch(text)
    if not found:
        raise ValueError(
            f'{brief(text)} is not a host of pictures: give a name such as example.com, *.example.com, '
            'example.com:8443 or, to allow it without encryption, http://example.com'
        )
    scheme = (found[1] or 'https').lower()
    return AllowedHost(scheme, found[2].lower(), _port(found[3], scheme))


def read_url(url: str) -> Location:
    """Where a URL leads; ApiError if it is not a plain one of http or https."""
    found = URL.fullmatch(url) if len(url) <= URL_CHARACTERS else None
    if not found:
        raise _error(
            f'the URL of a picture that begins with {brief(url[:16])} cannot be used: expected '
            f'https://host/path of at most {URL_CHARACTERS} characters, percent-encoded, without a user name '
            'or a password'
        )
    scheme, host = found[1].lower(), found[2].lower()
    try:
        port = _port(found[3], scheme)
    except ValueError as error:
        raise _error(f'{host}: {error}') from None
    target = found[4] if found[4].startswith('/') else f'/{found[4]}'
    return Location(scheme, host, port, target)


def _port(text: str | None, scheme: str) -> int:
    port = int(text) if text else DEFAULT_PORTS[scheme]
    if not 1 <= port <= 65535:
        raise ValueError(f'the port is {port}: expected a number from 1 to 65535')
    return port


def _error(message: str) -> ApiError:
    return ApiError(400, message, code='image_not_fetched')
