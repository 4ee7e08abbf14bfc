"""An engine without a model: it answers with the prompt, from a thread of its own and in random order."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any, NamedTuple

from vipllava_jax.engine.question import QueueFull
from vipllava_jax.generation.settings import GenerationSettings


class FakeAnswer(NamedTuple):
    text: str
    ids: tuple[int, ...]
    finish_reason: str = 'stop'
    prompt_tokens: int = 7
    cached_tokens: int = 0


class FakeReply:
    def __init__(self, question: Any):
        self.question, self.ended = question, threading.Event()
        self.error: BaseException | None = None
        self.cancelled = False
        self.warnings: tuple[str, ...] = ('a mark is cut off',) if 'cut' in str(question.prompt) else ()

    def result(self, timeout: float | None = None) -> tuple[FakeAnswer, ...]:
        if not self.ended.wait(timeout):
            raise TimeoutError
        if self.error:
            raise self.error
        n = self.question.settings.num_return_sequences
        text = (
            self.question.prompt if isinstance(self.question.prompt, str) else self.question.prompt[-1].text
        )
        return tuple(FakeAnswer(f'{text} {k}' if k else text, (1,) * (k + 1)) for k in range(n))

    def cancel(self) -> None:
        if not self.ended.is_set():
            self.error, self.cancelled = CancelledError(), True
            self.ended.set()


class FakeEngine:
    """`fails` maps a question to its error, if any; `most` is the most questions that have waited."""

    def __init__(
        self, queue: int = 1024, rows: int = 4, fails: Callable[[Any], BaseException | None] = lambda q: None
    ):
        self.queue, self.rows, self.fails = queue, rows, fails
        self.model = SimpleNamespace(settings=GenerationSettings(), processor=None)
        self.waiting: list[FakeReply] = []
        self.asked: list[Any] = []
        self.most = self.finished = 0
        self.changed, self.closed, self.rng = threading.Condition(), False, random.Random(0)
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
            if self.closed:
                raise RuntimeError('the engine is closed')
            if len(self.waiting) >= self.queue:
                raise QueueFull('the queue is full')
            reply = FakeReply(question)
            self.asked.append(question)
            self.waiting.append(reply)
            self.most = max(self.most, len(self.waiting))
            self.changed.notify()
        return reply

    def stats(self) -> Any:
        return SimpleNamespace(
            rows=self.rows,
            long_rows=0,
            steps=self.finished * 8,
            row_steps=self.finished * 8 * self.rows,
            lane_steps=self.finished * 8 * self.rows,
        )

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if self.closed:
                    for reply in self.waiting:
                        reply.cancel()
                    return
                reply = self.waiting.pop(self.rng.randrange(len(self.waiting)))
                self.finished += 1
            reply.error = reply.error or self.fails(reply.question)
            reply.ended.set()
