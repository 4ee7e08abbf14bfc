"""A server: its model and engine, its phase from loading to draining, and the requests that it answers."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

from starlette.datastructures import Headers
from starlette.types import Receive

from vipllava_jax.engine.engine import Engine
from vipllava_jax.engine.stats import Stats
from vipllava_jax.protocol.errors import NO_PARAMS, ApiError, api_error
from vipllava_jax.protocol.exchange import Exchange
from vipllava_jax.protocol.requests import read_request
from vipllava_jax.protocol.served import Served
from vipllava_jax.serving.asking import Asking
from vipllava_jax.serving.bodies import BodyMemory, Grow, read_body
from vipllava_jax.serving.image_hosts import ImageHosts
from vipllava_jax.serving.logs import RequestLog
from vipllava_jax.serving.metrics import Metrics
from vipllava_jax.serving.options import ServerOptions
from vipllava_jax.serving.previews import Previews
from vipllava_jax.serving.wakeups import Wakeups

Phase = Literal['loading', 'ready', 'draining', 'failed']
Progress = Callable[[str, int, int], None]  # 'weights' or 'programs', the number done, and of all
LOG = logging.getLogger('vipllava')
THREADS = 4  # that decode JSON and pictures
GRACE = 1.0  # seconds in which requests that ran out of time send their errors
TURNS = 10  # in this time, of ending those that have only now been read


class Server:
    """A model that is served; all methods but `load` and `report` belong to the thread of the event loop.

    `start` loads the model and starts the engine; it is given a function to report progress.
    """

    def __init__(self, options: ServerOptions, start: Callable[[Progress], Engine]) -> None:
        self.options, self._start = options, start
        self.engine: Engine | None = None
        self.served: Served | None = None
        self.progress = ('weights', 0, 0)
        self.open = 0  # requests that have been admitted and not answered
        self.asking: set[Asking] = set()  # those of them whose bodies have been read
        self.is_draining = False
        self.bodies = BodyMemory(options.memory_for_bodies)
        self.threads = ThreadPoolExecutor(THREADS, 'vipllava request')
        self.wakeups = Wakeups()
        self.metrics = Metrics(self.stats)
        self.log = RequestLog(sys.stderr, options.log_format, options.log_prompts)
        self.images = ImageHosts(options.image_hosts, options.limits)
        self.previews = Previews(options.limits.picture_pixels)
        self._capacity = 0
        self._logged: BaseException | None = None  # the last error that was logged
        self._idle = asyncio.Event()
        self._idle.set()

    def load(self) -> None:
        """Loads the model and starts the engine, which makes the server ready; raises the errors of both."""
        engine = self._start(self.report)
        stats = engine.stats()
        self._capacity = stats.rows + stats.long_rows + self.options.queue
        options = self.options
        self.served = Served(
            options.name,
            engine.model,
            created=int(time.time()),
            limits=options.limits,
            max_model_len=options.max_model_len,
            template=options.template,
            fit=options.fit,
        )
        self.engine = engine  # last, because it makes the server ready

    def report(self, stage: str, done: int, total: int) -> None:
        """Remembers how far loading has come."""
        self.progress = (stage, done, total)

    def stats(self) -> Stats | None:
        """The counts of the engine; None before there is one."""
        return self.engine.stats() if self.engine else None

    @property
    def phase(self) -> Phase:
        if self.engine and self.engine.error:
            return 'failed'
        if self.is_draining:
            return 'draining'
        return 'ready' if self.engine else 'loading'

    def ready(self) -> tuple[Engine, Served]:
        """The engine and its model; ApiError (503) if the server does not take requests."""
        if self.phase != 'ready':
            raise self.unavailable()
        assert self.engine
        assert self.served
        return self.engine, self.served

    def unavailable(self) -> ApiError:
        """The error of requests while the server is not ready."""
        if self.phase == 'loading':
            return ApiError(503, 'the model is being loaded: try again later', code='loading', retry_after=5)
        if self.phase == 'draining':
            return ApiError(503, 'the server is shutting down', code='shutting_down', retry_after=5)
        message = 'the engine has failed, and the server must be restarted; its log says why'
        return ApiError(503, message, code='engine_failed', retry_after=5)

    def explain(self, error: BaseException, exchange: Exchange | None) -> ApiError:
        """The error for the client; one that is a fault of the server is logged with its traceback."""
        found = api_error(error, exchange.params if exchange else NO_PARAMS)
        if found.status != 500:
            return found
        if error is not self._logged:  # an error of the engine ends many requests
            self._logged = error
            LOG.error('a request has failed', exc_info=error)
        return found if self.phase == 'ready' else self.unavailable()

    @contextmanager
    def admit(self) -> Iterator[tuple[Engine, Served]]:
        """Counts a request until the end of the block, and yields the engine and its model.

        Raises ApiError if the server is full (429) or not ready (503). Requests whose bodies are being read,
        which can take a minute, take no room from others.
        """
        ready = self.ready()
        self._check_room(len(self.asking))
        self.open += 1
        self._idle.clear()
        try:
            yield ready
        finally:
            self.open -= 1
            if not self.open:
                self._idle.set()

    def check_queue(self, engine: Engine) -> None:
        """Raises ApiError (429) if the queue of the engine is full, which one request can do.

        As long as the queue has not taken all questions of such a request, it counts as full, so that those
        of later requests do not come first.
        """
        stats = engine.stats()
        count = stats.running + stats.waiting + stats.preparing
        if any(asking.has_more for asking in self.asking):
            count = max(count, self._capacity)
        self._check_room(count)

    @contextmanager
    def place_for(self, asking: Asking) -> Iterator[None]:
        """Takes the room of a request whose body has been read; ApiError (429) if there is none."""
        self._check_room(len(self.asking))
        self.asking.add(asking)
        try:
            yield
        finally:
            self.asking.remove(asking)

    def _check_room(self, count: int) -> None:
        if count >= self._capacity:
            message = f'{count} requests are being answered or wait: send it again later'
            raise ApiError(429, message, code='queue_full', retry_after=1)

    async def in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of work that would hold up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)

    async def body(self, headers: Headers, receive: Receive, grow: Grow) -> bytes:
        """The body of a request; raises the errors of `read_body`."""
        options = self.options
        return await read_body(headers, receive, options.limits.body_bytes, options.body_timeout, grow)

    async def read(self, headers: Headers, receive: Receive, grow: Grow, kind: type[Any]) -> Any:
        """Reads a request of a kind -> it, and the names of its fields that have no effect.

        Raises ApiError for an invalid one, and the errors of `read_body`.
        """
        return await self.in_thread(read_request, await self.body(headers, receive, grow), kind)

    async def drain(self) -> None:
        """Refuses new requests, and waits for the others; those that run out of time end with an error."""
        self.is_draining = True
        if not self.engine or await self._answered(self.options.drain):
            return
        message = f'the server is shutting down, and did not finish within {self.options.drain:g} seconds'
        for _ in range(TURNS):
            self.engine.fail_open(ApiError(503, message, code='shutting_down', retry_after=5))
            if await self._answered(GRACE / TURNS):
                return

    async def _answered(self, seconds: float) -> bool:
        """Waits until all requests are answered; returns whether they are."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Ends the engine and the threads, and waits for what they do."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.previews.close()
        if self.engine:
            self.engine.close()
        self.images.close()
        self.threads.shutdown()
