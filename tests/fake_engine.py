"""What the engines of tests have in common that answer without a model, from a thread of their own."""

import random
import threading
from concurrent.futures import CancelledError
from typing import Any

from vipllava_jax.engine.question import QueueFull


class FakeReply:
    """A reply that is given all its answers at once, or an error."""

    def __init__(self, question: Any, warnings: tuple[str, ...] = ()):
        self.question, self.warnings = question, warnings
        self.ended, self.lock, self.cancelled = threading.Event(), threading.Lock(), False
        self.answers: tuple[Any, ...] = ()
        self.error: BaseException | None = None

    def end(self, answers: tuple[Any, ...], error: BaseException | None = None) -> bool:
        """Ends a reply that has not ended; returns whether it had not."""
        with self.lock:
            if self.done:
                return False
            self.answers, self.error = answers, error
            self.ended.set()
            return True

    @property
    def done(self) -> bool:
        return self.ended.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        return self.ended.wait(timeout)

    def result(self, timeout: float | None = None) -> tuple[Any, ...]:
        if not self.wait(timeout):
            raise TimeoutError
        if self.error:
            raise self.error
        return self.answers

    def cancel(self) -> None:
        self.cancelled = self.end((), CancelledError()) or self.cancelled


class WaitingQuestions:
    """Questions that are answered in random order; `most` is the most of them that have waited.

    A subclass creates the replies, and ends them.
    """

    def __init__(self, queue: int, rows: int):
        self.queue, self.rows = queue, rows
        self.waiting: list[Any] = []  # replies
        self.asked: list[Any] = []
        self.most, self.closed, self.rng = 0, False, random.Random(0)
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, name='vipllava fake engine', daemon=True)
        self.thread.start()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def reply_to(self, question: Any) -> Any:
        raise NotImplementedError

    def end(self, reply: Any) -> None:
        raise NotImplementedError

    def submit(self, question: Any) -> Any:
        with self.changed:
            if self.closed:
                raise RuntimeError('the engine is closed')
            if len(self.waiting) >= self.queue:
                raise QueueFull('the queue is full')
            self.asked.append(question)
            self.waiting.append(reply := self.reply_to(question))
            self.most = max(self.most, len(self.waiting))
            self.changed.notify()
        return reply

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if self.closed:
                    for reply in self.waiting:
                        reply.cancel()
                    return
                reply = self.waiting.pop(self.rng.randrange(len(self.waiting)))
            self.end(reply)
