"""Keeps an engine busy with many questions, and takes each answer as soon as it is complete."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from vipllava_jax.engine.pieces import Answer
from vipllava_jax.engine.question import Question, QuestionError, QueueFull

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.engine.reply import Reply

K = TypeVar('K')
MIN_AHEAD = 64  # questions whose pictures are prepared while all rows are busy
WAIT = 0.2  # seconds between two looks at a queue that others have filled


class Ended(NamedTuple, Generic[K]):
    """A question that needs nothing more: its answer, or why it can have none."""

    key: K
    answer: Answer | None  # the first, if there are several
    error: QuestionError | None = None
    warnings: tuple[str, ...] = ()  # about its pictures


def ask_all(engine: 'Engine', questions: Iterable[tuple[K, Question]]) -> Iterator[list[Ended[K]]]:
    """Asks questions, each with a key of the caller -> lists of those that have ended, in any order.

    A bounded number is read ahead of the answers. Closing the iterator cancels what is not answered. Raises
    the error of an engine that has failed, and RuntimeError if it is closed.
    """
    asked = _Asked(engine, iter(questions))
    try:
        while asked.has_more:
            if ended := asked.fill() or asked.collect():
                yield ended
    finally:
        asked.cancel()


def look_ahead(engine: 'Engine') -> int:
    """How many questions an engine is given at a time: those that it answers, and those that it prepares."""
    stats = engine.stats()
    return stats.rows + stats.long_rows + max(stats.rows, MIN_AHEAD)


class _Asked(Generic[K]):
    """The questions that an engine has, and the one that follows them."""

    def __init__(self, engine: 'Engine', questions: Iterator[tuple[K, Question]]) -> None:
        self.engine, self.questions, self.most = engine, questions, look_ahead(engine)
        self.next = next(questions, None)
        self.waiting: dict[int, tuple[K, Reply]] = {}  # by the order in which they were asked
        self.ended: SimpleQueue[int] = SimpleQueue()  # written by the thread of the engine
        self.count = 0

    @property
    def has_more(self) -> bool:
        return bool(self.waiting) or self.next is not None

    def fill(self) -> list[Ended[K]]:
        """Asks as many questions as may wait; stops after one that is refused, and returns it."""
        while self.next is not None and len(self.waiting) < self.most:
            key, question = self.next
            try:
                reply = self.engine.submit(question)
            except QueueFull:  # others ask the same engine
                break
            except QuestionError as error:
                self.next = next(self.questions, None)
                return [Ended(key, None, error)]
            self.waiting[self.count] = key, reply
            reply.on_progress(partial(self._notice, self.count))
            self.count += 1
            self.next = next(self.questions, None)
        return []

    def collect(self) -> list[Ended[K]]:
        """What has ended since the last call; waits for something, but not for long."""
        if not self.waiting:
            time.sleep(WAIT)
            return []
        numbers = set()
        with contextlib.suppress(Empty):
            numbers.add(self.ended.get(timeout=WAIT))
            while True:
                numbers.add(self.ended.get_nowait())
        return [_ended(*self.waiting.pop(number)) for number in sorted(numbers & self.waiting.keys())]

    def cancel(self) -> None:
        for _, reply in self.waiting.values():
            reply.cancel()

    def _notice(self, number: int) -> None:
        """Called in the thread of the engine whenever a reply grows, also after its end."""
        entry = self.waiting.get(number)
        if entry and entry[1].done:
            self.ended.put(number)


def _ended(key: K, reply: 'Reply') -> Ended[K]:
    try:
        answer = reply.result()[0]
    except QuestionError as error:
        return Ended(key, None, error)
    except CancelledError:
        raise RuntimeError('the engine was closed before it had answered all questions') from None
    return Ended(key, answer, warnings=reply.warnings)
