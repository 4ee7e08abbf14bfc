"""What the engines of tests have in common that answer without a model, from a thread of their own."""

import random
import threading
from typing import Any

from vipllava_jax.engine.question import QueueFull


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
        self.thread = threading.Thread(target=self._work, daemon=True)
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
