"""Asks the engine the questions of one request, and brings their pieces to the event loop."""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

from starlette.types import Receive

from vipllava_jax.engine.engine import Engine
from vipllava_jax.engine.pieces import Piece
from vipllava_jax.engine.question import Question, QueueFull
from vipllava_jax.engine.reply import PieceReader, Reply
from vipllava_jax.serving.bodies import Disconnected
from vipllava_jax.serving.wakeups import Wakeups

RETRY = 0.05  # seconds until a question is asked again for which the queue had no room


class Asking:
    """The questions of one request: `replies` grows as the queue of the engine has room for them.

    All methods but `ask`, `ask_more` and `check_client` belong to the thread of the event loop in which it
    was created.
    """

    def __init__(self, engine: Engine, wakeups: Wakeups) -> None:
        self.replies: list[Reply] = []
        self._engine, self._wakeups = engine, wakeups
        self._left: deque[Question] = deque()
        self._only_ends = False
        self._asked = 0.0  # the time of the loop when questions were asked last
        self.has_more = False  # whether the queue had no room for questions, which must be asked again
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._changed: deque[int] = deque()  # replies with something to read
        self._readers: dict[int, PieceReader] = {}
        self._complete: set[int] = set()  # replies that have ended, and were read
        self._is_closed = self._is_gone = False

    @property
    def is_time_to_ask(self) -> bool:
        """Whether questions must be asked again, and RETRY seconds have passed since they were asked last."""
        return self.has_more and self._loop.time() - self._asked >= RETRY

    @property
    def is_complete(self) -> bool:
        """Whether all questions are answered, and everything is read."""
        return not self._left and len(self._complete) == len(self.replies)

    def ask(self, questions: Sequence[Question], only_ends: bool) -> None:
        """Asks the questions, in any thread; with `only_ends`, pieces of a reply are no news, only its end.

        Raises QueueFull if there is no room for the first; the others wait for `ask_more`. Raises the other
        errors of `Engine.submit`.
        """
        self._left.extend(questions)
        self._only_ends = only_ends
        self.ask_more()

    def ask_more(self) -> None:
        """Asks the questions that are left, in any thread; raises the errors of `ask`."""
        self._asked = self._loop.time()
        while self._left and not self._is_closed:
            try:
                reply = self._engine.submit(self._left[0])
            except QueueFull:
                if not self.replies:
                    raise
                self.has_more = True
                return
            self.replies.append(reply)
            self._left.popleft()
            if self._is_closed:
                reply.cancel()
            reply.on_progress(partial(self._written, len(self.replies) - 1))
        self.has_more = False

    def _written(self, index: int) -> None:
        """A reply has changed, in the thread of the engine."""
        if self._only_ends and not self.replies[index].done:
            return
        self._changed.append(index)
        self._wakeups.call(self._loop, self._news.set)

    async def watch(self, receive: Receive) -> None:
        """Notices when the client disconnects, after its body was read."""
        while (await receive())['type'] != 'http.disconnect':
            pass
        self._is_gone = True
        self._news.set()

    async def news(self, seconds: float) -> list[int]:
        """Waits for news, at most `seconds` -> the replies with news; Disconnected if no client."""
        if self.has_more:
            seconds = RETRY
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return []
        self._news.clear()
        self.check_client()
        return [*dict.fromkeys(self._changed.popleft() for _ in range(len(self._changed)))]

    def check_client(self) -> None:
        """Raises Disconnected if the client is gone."""
        if self._is_gone:
            raise Disconnected

    def pieces(self, index: int) -> Iterator[Piece]:
        """The new pieces of a reply; then raises its error, if it has failed."""
        if index not in self._readers:
            self._readers[index] = PieceReader(self.replies[index])
        reader = self._readers[index]
        is_done = reader.reply.done  # before the last pieces are read, so that none is missed
        yield from reader.available()
        if is_done:
            reader.available()
            self._complete.add(index)

    def check(self, index: int) -> None:
        """Raises the error of a reply, if it has failed; for a reader that waits for whole answers."""
        reply = self.replies[index]
        if reply.done:
            if reply.error:
                raise reply.error
            self._complete.add(index)

    def close(self) -> None:
        """Cancels the replies that are not complete."""
        self._is_closed = True
        for reply in [*self.replies]:
            reply.cancel()
