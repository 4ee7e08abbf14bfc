"""Runs a server in this process: listens, loads the model, and drains when a signal asks for it."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn

from vipllava_jax import signals
from vipllava_jax.serving import logs
from vipllava_jax.serving.app import create_app
from vipllava_jax.serving.connections import connection_class
from vipllava_jax.serving.sockets import bound_socket, url_of
from vipllava_jax.serving.state import Server
from vipllava_jax.threads import background

KEEP_ALIVE = 75  # seconds, more than clients keep connections, so that they do not meet a closed one
FLUSH = 2  # seconds for what is written to be sent, after all requests have ended
CLOSE = 2  # seconds for the engine to end; the process does not wait for it longer
OTHER_FILES = 256  # descriptors beside those of connections
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class HttpServer(uvicorn.Server):
    """uvicorn without its own handling of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(
    server: Server, announce: Callable[[str], None], listening: Callable[[str], None] = lambda url: None
) -> None:
    """Serves until a signal has come and the requests are answered.

    `listening` is told the URL before the model is loaded, and `announce` when requests are answered.

    Raises ValueError if the address cannot be used, before the model is loaded, and the errors of loading.
    """
    allow_connections(server.options.connections)
    logs.configure(server.options.log_format)
    with bound_socket(server.options) as bound:
        listening(url_of(bound, server.options))
        try:
            asyncio.run(serve(server, bound, announce))
        finally:
            with contextlib.suppress(TimeoutError):
                background(server.close)(CLOSE)


async def serve(server: Server, bound: socket.socket, announce: Callable[[str], None]) -> None:
    """Serves on a bound socket, while the model is loaded and afterwards."""
    http = HttpServer(configuration(server))
    signalled = asyncio.Event()
    with handling_signals(signalled):
        serving = asyncio.create_task(http.serve([bound]))
        ending = asyncio.create_task(signalled.wait())
        loading = asyncio.create_task(load(server))
        try:
            await asyncio.wait({serving, ending, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                announce(url_of(bound, server.options))
                await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
            await server.drain()
        finally:
            http.should_exit = True
            ending.cancel()
            loading.cancel()
            await serving


async def load(server: Server) -> None:
    """Loads the model in a thread, which goes on if the server ends meanwhile."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        try:
            server.load()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended.set)

    wait = background(work)
    await ended.wait()
    wait()


def configuration(server: Server) -> uvicorn.Config:
    """The settings of uvicorn: HTTP/1.1 only, with our limits, and without its logs of requests."""
    options = server.options
    return uvicorn.Config(
        create_app(server),
        http=connection_class(options),
        ws='none',
        lifespan='off',
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=FLUSH,
        ssl_certfile=options.tls_cert,
        ssl_keyfile=options.tls_key,
    )


@contextlib.contextmanager
def handling_signals(arrived: asyncio.Event) -> Iterator[None]:
    """Within the block, the first signal sets the event; a second one ends the process at once.

    A signal that is ignored, as SIGINT is in a background job, stays ignored. Outside the main thread, where
    Python handles no signals, none is handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int) -> None:
        if arrived.is_set():
            signals.end_cleanly()
            os.kill(os.getpid(), number)
        arrived.set()

    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in handled:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])


def allow_connections(count: int) -> None:
    """Raises the limit of open files, as far as the system lets a process do that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
