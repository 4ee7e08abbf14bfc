"""Keeps an engine busy with many questions, and takes answers as they are complete."""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from vipllava_jax.engine.pieces import Answer
from vipllava_jax.engine.question import Question, QuestionError, QueueFull

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.engine.reply import Reply

K = TypeVar('K')
MIN_AHEAD = 64  # questions whose pictures are prepared while all rows are busy
MAX_AHEAD_BYTES = 512 << 20  # bytes of pictures that wait in memory for their turn
WAIT = 0.05  # seconds between two looks at the answers


@dataclass(eq=False)
class Asked(Generic[K]):
    """Questions that belong together, with a key of the caller, and their replies or their common error."""

    key: K
    questions: Sequence[Question]
    size: int = 0  # bytes of their pictures that lie in memory
    error: Exception | None = None  # no more is asked if there is one
    replies: list['Reply'] = field(default_factory=list)

    def ask(self, engine: 'Engine') -> bool:
        """Asks those questions that have not been asked yet; returns whether the engine has taken all."""
        try:
            for question in self.questions[len(self.replies) :]:
                if self.error:
                    break
                self.replies.append(engine.submit(question))
        except QueueFull:  # others ask the same engine
            return False
        except QuestionError as error:
            self._fail(error)
        return True

    def has_ended(self) -> bool:
        """Whether all are answered, or one cannot be; raises the error of an engine that has failed."""
        for reply in self.replies:
            if self.error is None and reply.error is not None:
                self._fail(reply.error)
        is_asked = len(self.replies) == len(self.questions)
        return self.error is not None or (is_asked and all(reply.done for reply in self.replies))

    def _fail(self, error: BaseException) -> None:
        """Keeps the error of a question, and cancels the others; raises that of an engine."""
        if isinstance(error, CancelledError):
            raise RuntimeError('the engine was closed before it answered all questions') from None
        if not isinstance(error, QuestionError):
            raise error
        self.error = error
        self.cancel()

    def cancel(self) -> None:
        for reply in self.replies:
            reply.cancel()


def look_ahead(engine: 'Engine') -> int:
    """How many questions an engine is given at a time: those that it answers, and those that it prepares."""
    stats = engine.stats()
    return stats.rows + stats.long_rows + max(stats.rows, MIN_AHEAD)


def ask_together(
    engine: 'Engine', questions: Iterator[Asked[K] | None], ordered: bool = False
) -> Generator[list[Asked[K]]]:
    """Asks questions, a bounded number ahead, and yields those that have ended, several times a second.

    A list may be empty. `questions` may yield None where the next ones are not known yet. With `ordered`,
    they end in their order. Closing the iterator cancels what is not answered. Raises the error of an engine
    that has failed, and RuntimeError if it is closed.
    """
    waiting: deque[Asked[K]] = deque()
    ahead, more = look_ahead(engine), True
    try:
        while more or waiting:
            if all(asked.ask(engine) for asked in [*waiting][-1:]) and more:
                more = _fill(engine, questions, waiting, ahead)
            ended = _collect(waiting, ordered)
            yield ended
            if not ended:
                _wait(waiting)
    finally:
        for asked in waiting:
            asked.cancel()


def _fill(
    engine: 'Engine', questions: Iterator[Asked[K] | None], waiting: deque[Asked[K]], ahead: int
) -> bool:
    """Asks as many questions as may wait; returns whether there may be others."""
    size = sum(asked.size for asked in waiting)
    count = sum(max(len(asked.replies), 1) for asked in waiting)
    while count < ahead and size < MAX_AHEAD_BYTES:
        try:
            asked = next(questions)
        except StopIteration:
            return False
        if asked is None:
            break
        waiting.append(asked)
        if not asked.ask(engine):
            break
        size, count = size + asked.size, count + max(len(asked.replies), 1)
    return True


def _collect(waiting: deque[Asked[K]], ordered: bool) -> list[Asked[K]]:
    """Removes what has ended; with `ordered` only what nothing unfinished precedes."""
    ended = []
    for _ in range(len(waiting)):
        asked = waiting.popleft()
        if asked.has_ended():
            ended.append(asked)
        elif ordered:
            waiting.appendleft(asked)
            break
        else:
            waiting.append(asked)
    return ended


def _wait(waiting: deque[Asked[K]]) -> None:
    """Waits until a question of the first has been answered, but not for long."""
    running = [reply for reply in waiting[0].replies if not reply.done] if waiting else []
    if running:
        running[0].wait(WAIT)
    else:
        time.sleep(WAIT)


class Ended(NamedTuple, Generic[K]):
    """A question that needs nothing more: its answer, or why it can have none."""

    key: K
    answer: Answer | None  # the first, if there are several
    error: Exception | None = None
    warnings: tuple[str, ...] = ()  # about its pictures


def ask_all(engine: 'Engine', questions: Iterable[tuple[K, Question]]) -> Iterator[list[Ended[K]]]:
    """Asks questions, each with a key of the caller -> lists of those that have ended, in any order.

    Reads ahead, ends and raises errors as `ask_together`.
    """
    single = (Asked(key, (question,)) for key, question in questions)
    with closing(ask_together(engine, single)) as found:
        for asked in found:
            if asked:
                yield [_ended(one) for one in asked]


def _ended(asked: Asked[K]) -> Ended[K]:
    if asked.error:
        return Ended(asked.key, None, asked.error)
    (reply,) = asked.replies
    return Ended(asked.key, reply.result()[0], warnings=reply.warnings)
