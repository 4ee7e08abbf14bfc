"""The socket on which a server listens; it is bound before a model is loaded."""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator

from vipllava_jax import signals
from vipllava_jax.serving.options import ServerOptions


@contextlib.contextmanager
def bound_socket(options: ServerOptions) -> Iterator[socket.socket]:
    """A bound socket for the address of the options, closed after the block; a Unix socket is also removed.

    Raises ValueError if the address cannot be used.
    """
    if options.uds is None:
        with bind_port(options.host, options.port) as bound:
            yield bound
        return
    with signals.unfinished(options.uds), bind_path(options.uds) as bound:
        try:
            yield bound
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(options.uds)


def bind_port(host: str, port: int) -> socket.socket:
    """A socket that is bound to a port of this computer, any free one for 0."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f'--host {host} is not an address of this computer: {error}') from None
    bound = socket.socket(family, kind, protocol)  # asyncio turns delays off only where it reads TCP
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()  # so that another server fails to start, and not only to answer
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            advice = 'end the program that uses it, or give another --port, 0 for any free one'
            raise ValueError(f'port {port} of {host} is in use: {advice}') from None
        raise ValueError(f'cannot listen on port {port} of {host}: {error.strerror}') from None
    return bound


def bind_path(path: str) -> socket.socket:
    """A Unix socket at a path, which only this user can use; replaces one that no server listens on."""
    bound = socket.socket(socket.AF_UNIX)
    try:
        if is_left_over(path):
            os.unlink(path)
        before = os.umask(0o177)
        try:
            bound.bind(path)
        finally:
            os.umask(before)
        bound.listen()
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            advice = 'another server uses it, or it is another kind of file: give another path'
            raise ValueError(f'--uds {path}: {advice}') from None
        raise ValueError(f'--uds {path}: {error.strerror or error}') from None
    return bound


def is_left_over(path: str) -> bool:
    """Whether a path is that of a Unix socket of a server that has ended without removing it."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False


def url_of(bound: socket.socket, options: ServerOptions) -> str:
    """The URL of a server, or how curl reaches its Unix socket."""
    if options.uds is not None:
        return f'unix:{options.uds}'
    host = f'[{options.host}]' if ':' in options.host else options.host
    return f'{"https" if options.tls_cert else "http"}://{host}:{bound.getsockname()[1]}'
