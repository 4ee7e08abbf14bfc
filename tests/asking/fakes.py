"""An engine without a model: it answers from a thread of its own, in random order."""

import random
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from vipllava_jax.engine.pieces import Answer
from vipllava_jax.engine.question import QueueFull


class FakeReply:
    def __init__(self, question: Any, warnings: tuple[str, ...]):
        self.question, self.warnings = question, warnings
        self.done = self.cancelled = False
        self.found: Any = None
        self.notice: Callable[[], None] = lambda: None

    def on_progress(self, callback: Callable[[], None]) -> None:
        self.notice = callback
        if self.done:
            callback()

    def end(self, found: Answer | BaseException) -> None:
        """Ends with an answer or an error, and tells the reader more than once, as an engine may."""
        self.found, self.done = found, True
        self.notice()
        self.notice()

    def result(self, timeout: float | None = None) -> tuple[Answer, ...]:
        assert self.done
        if isinstance(self.found, BaseException):
            raise self.found
        return (self.found,)

    def cancel(self) -> None:
        self.cancelled = True


class FakeEngine:
    """`answer` maps a question to a text or an error; `most` is the most questions that have waited."""

    def __init__(
        self,
        answer: Callable[[Any], str | BaseException] = lambda question: text_of(question),
        queue: int = 1024,
        rows: int = 2,
        warnings: tuple[str, ...] = (),
    ):
        self.answer, self.queue, self.rows, self.warnings = answer, queue, rows, warnings
        self.waiting: list[FakeReply] = []
        self.asked: list[Any] = []
        self.most, self.closed, self.rng = 0, False, random.Random(0)
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def __enter__(self) -> 'FakeEngine':
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def submit(self, question: Any) -> FakeReply:
        with self.changed:
            if len(self.waiting) >= self.queue:
                raise QueueFull('the queue is full')
            self.asked.append(question)
            self.waiting.append(reply := FakeReply(question, self.warnings))
            self.most = max(self.most, len(self.waiting))
            self.changed.notify()
        return reply

    def stats(self) -> Any:
        return SimpleNamespace(rows=self.rows, long_rows=1)

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if self.closed:
                    return
                reply = self.waiting.pop(self.rng.randrange(len(self.waiting)))
            reply.notice()  # as if it grew
            found = self.answer(reply.question)
            reply.end(Answer(found, (1, 2), 'stop', 7, 0) if isinstance(found, str) else found)


def text_of(question: Any) -> str:
    """The question itself, as its answer."""
    return question.prompt if isinstance(question.prompt, str) else question.prompt[-1].text
