"""Keeps an engine busy with the questions of a batch, and collects the answers as they are finished."""

import contextlib
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from vipllava_jax.asking.many import look_ahead
from vipllava_jax.batch_files.questions import RowQuestion
from vipllava_jax.engine.question import QuestionError, QueueFull
from vipllava_jax.messages import printable

if TYPE_CHECKING:
    from vipllava_jax.engine.engine import Engine
    from vipllava_jax.engine.reply import Reply

POLL = 0.05  # seconds between two looks at the answers
MAX_AHEAD_BYTES = 512 << 20  # bytes of pictures that wait in memory for their turn


@dataclass
class Asked:
    """A question that the engine has, or the error of its row."""

    asked: RowQuestion
    reply: 'Reply | None' = None
    error: str = ''

    def line(self) -> dict[str, Any] | None:
        """The line of the answer or the error; None while the engine is at work on it.

        Raises the engine's error if it cannot answer any question.
        """
        if self.reply is None:
            return error_line(self.asked, self.error)
        try:
            answers = self.reply.result(timeout=0)
        except TimeoutError:
            return None
        except CancelledError:
            raise RuntimeError('the engine was closed before it answered all questions') from None
        except QuestionError as error:
            return error_line(self.asked, str(error))
        return answer_line(self.asked, answers)


def answer_line(asked: RowQuestion, answers: Any) -> dict[str, Any]:
    """What is written for a question: its id, one answer or several, and the numbers of their tokens."""
    first = answers[0]
    several = len(answers) > 1
    line: dict[str, Any] = {'id': asked.id}
    line |= {'answers': [answer.text for answer in answers]} if several else {'answer': first.text}
    reasons = [answer.finish_reason for answer in answers]
    counts = [len(answer.ids) for answer in answers]
    line |= {'finish_reason': reasons if several else reasons[0], 'prompt_tokens': first.prompt_tokens}
    line['new_tokens'] = counts if several else counts[0]
    return line | ({'row': asked.row} if asked.row else {})


def error_line(asked: RowQuestion, error: str) -> dict[str, Any]:
    return {'id': asked.id, 'error': printable(error)} | ({'row': asked.row} if asked.row else {})


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
            if more:
                questions, more = _fill(engine, questions, waiting, ahead)
            finished = _collect(waiting, ordered)
            has_warned = has_warned or _warn(asked for asked, _ in finished)
            yield [line for _, line in finished]
            if not finished:
                _wait(waiting)
    finally:
        for asked in waiting:
            if asked.reply:
                asked.reply.cancel()


def _fill(
    engine: 'Engine', questions: Iterator[RowQuestion | None], waiting: deque[Asked], ahead: int
) -> tuple[Iterator[RowQuestion | None], bool]:
    """Asks as many questions as may wait; returns the others, and whether there may be any."""
    size = sum(asked.asked.size for asked in waiting)
    while len(waiting) < ahead and size < MAX_AHEAD_BYTES:
        try:
            asked = next(questions)
        except StopIteration:
            return questions, False
        if asked is None:
            break
        try:
            waiting.append(_ask(engine, asked))
        except QueueFull:  # others ask the same engine
            return chain([asked], questions), True
        size += asked.size
    return questions, True


def _ask(engine: 'Engine', asked: RowQuestion) -> Asked:
    if asked.question is None:
        return Asked(asked, error=asked.error)
    try:
        return Asked(asked, engine.submit(asked.question))
    except QuestionError as error:
        return Asked(asked, error=str(error))


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
        if asked.reply and asked.reply.warnings:
            warnings.warn(f'{asked.asked.id}: {asked.reply.warnings[0]}', stacklevel=3)
            return True
    return False


def _wait(waiting: deque[Asked]) -> None:
    """Waits until the first question is answered, but not for long."""
    if waiting and waiting[0].reply:
        with contextlib.suppress(Exception):  # `_collect` reports it
            waiting[0].reply.result(timeout=POLL)
    else:
        time.sleep(POLL)
