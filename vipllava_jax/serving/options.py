"""How a server is run: its address, who may use it, and its limits."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from vipllava_jax.inputs.pixels import Fit
from vipllava_jax.inputs.prompts import DEFAULT_TEMPLATE
from vipllava_jax.messages import brief
from vipllava_jax.protocol.served import Limits

PRINTABLE = re.compile('[!-~]+')  # what an API key may consist of


@dataclass(frozen=True)
class ServerOptions:
    """The options of a server; ValueError for those that do not go together or are not safe."""

    name: str  # of the model, in requests
    host: str = '127.0.0.1'
    port: int = 8000  # 0: any free one
    uds: str | None = None  # the path of a Unix socket, in place of host and port
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()  # of web pages that may call the server
    image_hosts: tuple[str, ...] = ()  # from which pictures are fetched
    tls_cert: str | None = None
    tls_key: str | None = None
    template: str = DEFAULT_TEMPLATE  # of requests that name none
    fit: Fit | None = None  # the same; None: that of the checkpoint
    max_model_len: int | None = None
    queue: int = 1024  # questions that wait, beside those that have a row
    drain: float = 30  # seconds for requests to finish after SIGTERM
    log_format: Literal['text', 'json'] = 'text'
    log_prompts: bool = False
    limits: Limits = field(default_factory=Limits)
    memory_for_bodies: int = 1 << 30  # bytes of all requests that are not answered yet
    connections: int = 4096
    head_timeout: float = 20  # seconds for the head of a request to arrive
    body_timeout: float = 60  # seconds for the body of a request to arrive
    send_timeout: float = 30  # seconds in which a reader takes nothing
    quiet: float = 5  # seconds without news, after which a stream says that it is waiting

    def __post_init__(self) -> None:
        if self.uds is None and not self.api_keys and not is_loopback(self.host):
            raise ValueError(
                f'--host {self.host} can be reached by others: give an --api-key, or leave out --host for '
                '127.0.0.1'
            )
        if not all(PRINTABLE.fullmatch(key) for key in self.api_keys):
            raise ValueError('an API key is empty, or has spaces or other than ASCII characters')
        for origin in self.origins:
            check_origin(origin)
        check_tls(self.tls_cert, self.tls_key)

    @property
    def needs_loopback_name(self) -> bool:
        """Whether requests must name this computer as localhost, because nothing else keeps web pages out."""
        return self.uds is None and not self.api_keys


def is_loopback(host: str) -> bool:
    """Whether a host name or address is that of this computer alone."""
    try:
        return ipaddress.ip_address(host.strip('[]')).is_loopback
    except ValueError:
        return host.lower() == 'localhost'


def check_origin(origin: str) -> None:
    """Raises ValueError for what no browser sends as the origin of a page."""
    if origin == '*':
        return
    try:
        parts = urlsplit(origin)
        valid = origin == f'{parts.scheme}://{parts.netloc}' and bool(parts.hostname) and '@' not in origin
    except ValueError:
        valid = False
    if not valid or not PRINTABLE.fullmatch(origin):
        raise ValueError(f'--allow-origin is {brief(origin)}: expected an origin such as https://example.com')


def check_tls(cert: str | None, key: str | None) -> None:
    """Raises ValueError if the files of TLS are missing, or do not fit each other."""
    if cert is None:
        if key is not None:
            raise ValueError('--tls-key needs --tls-cert, the certificate of the key')
        return
    import ssl

    for path in (cert, key or cert):
        if not os.path.isfile(path):
            raise ValueError(f'{path}: no such file of TLS')
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: '')
    except (OSError, ValueError) as error:
        raise ValueError(
            f'{cert}: not a certificate with its key, in PEM and without a password: {error}'
        ) from None
