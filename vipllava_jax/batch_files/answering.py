"""Keeps an engine busy with the questions of a batch, and collects the answers as they are finished."""

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vipllava_jax.asking.many import look_ahead
from vipllava_jax.batch_files.questions import RowQuestion
from vipllava_jax.engine.question import QuestionError, QueueFull

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.engine.reply import Reply

POLL = 0.05  # seconds between two looks at the answers
MAX_AHEAD_BYTES = 512 << 20  # bytes of pictures that wait in memory for their turn


@dataclass
class Asked:
    """A row whose questions the engine has, or is about to have, or the error of the row."""

    row: RowQuestion
    replies: list['Reply'] = field(default_factory=list)
    error: Exception | None = None

    def ask(self, engine: 'Engine') -> bool:
        """Asks those questions that have not been asked yet; returns whether the engine has taken all."""
        try:
            for question in self.row.questions[len(self.replies) :]:
                if self.error:
                    break
                self.replies.append(engine.submit(question))
        except QueueFull:  # others ask the same engine
            return False
        except QuestionError as error:
            self.fail(error)
        return True

    def line(self) -> dict[str, Any] | None:
        """The line of the answers or the error; None while the engine is at work on them.

        Raises the engine's error if it cannot answer any question.
        """
        for reply in self.replies:
            if self.error is None and reply.error is not None:
                self.fail(reply.error)
        if self.error:
            return self.row.lines.error(self.error)
        if len(self.replies) < len(self.row.questions) or not all(reply.done for reply in self.replies):
            return None
        return self.row.lines.answers(self.replies)

    def fail(self, error: BaseException) -> None:
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


def rounds(
    engine: 'Engine', questions: Iterator[RowQuestion | None], ordered: bool = False
) -> Generator[list[dict[str, Any]]]:
    """Asks questions, a bounded number ahead, and yields the lines that are finished, several times a second.

    A list may be empty. `questions` may yield None where the next one is not known yet. With `ordered`, lines
    have the order of the questions. Closing the iterator cancels the questions that are not answered.
    """
    waiting: deque[Asked] = deque()
    ahead, more, has_warned = look_ahead(engine), True, False
    try:
        while more or waiting:
            if all(asked.ask(engine) for asked in [*waiting][-1:]) and more:
                more = _fill(engine, questions, waiting, ahead)
            finished = _collect(waiting, ordered)
            has_warned = has_warned or _warn(asked for asked, _ in finished)
            yield [line for _, line in finished]
            if not finished:
                _wait(waiting)
    finally:
        for asked in waiting:
            asked.cancel()


def _fill(
    engine: 'Engine', questions: Iterator[RowQuestion | None], waiting: deque[Asked], ahead: int
) -> bool:
    """Asks as many questions as may wait; returns whether there may be others."""
    size = sum(asked.row.size for asked in waiting)
    count = sum(max(len(asked.replies), 1) for asked in waiting)
    while count < ahead and size < MAX_AHEAD_BYTES:
        try:
            row = next(questions)
        except StopIteration:
            return False
        if row is None:
            break
        waiting.append(asked := Asked(row, error=row.error))
        if not asked.ask(engine):
            break
        size, count = size + row.size, count + max(len(asked.replies), 1)
    return True


def _collect(waiting: deque[Asked], ordered: bool) -> list[tuple[Asked, dict[str, Any]]]:
    """Removes what is finished, with its line; with `ordered` only what nothing unfinished precedes."""
    finished = []
    for _ in range(len(waiting)):
        asked = waiting.popleft()
        if (line := asked.line()) is not None:
            finished.append((asked, line))
        elif ordered:
            waiting.appendleft(asked)
            break
        else:
            waiting.append(asked)
    return finished


def _warn(finished: Iterable[Asked]) -> bool:
    """Warns of the first mark that is cut off, if there is one: the others would be as many lines."""
    for asked in finished:
        for warning in (warning for reply in asked.replies for warning in reply.warnings):
            warnings.warn(f'{asked.row.id}: {warning}', stacklevel=3)
            return True
    return False


def _wait(waiting: deque[Asked]) -> None:
    """Waits until the first row is answered, but not for long."""
    if waiting and waiting[0].replies:
        with contextlib.suppress(Exception):  # `_collect` reports it
            waiting[0].replies[-1].result(timeout=POLL)
    else:
        time.sleep(POLL)
