"""An engine without a model: it answers from a thread of its own, in random order."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.fake_engine import WaitingQuestions
from vipllava_jax.engine.pieces import Answer


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


class FakeEngine(WaitingQuestions):
    """`answer` maps a question to a text or an error."""

    def __init__(
        self,
        answer: Callable[[Any], str | BaseException] = lambda question: text_of(question),
        queue: int = 1024,
        rows: int = 2,
        warnings: tuple[str, ...] = (),
    ):
        self.answer, self.warnings = answer, warnings
        super().__init__(queue, rows)

    def reply_to(self, question: Any) -> FakeReply:
        return FakeReply(question, self.warnings)

    def stats(self) -> Any:
        return SimpleNamespace(rows=self.rows, long_rows=1)

    def end(self, reply: FakeReply) -> None:
        reply.notice()  # as if it grew
        found = self.answer(reply.question)
        reply.end(Answer(found, (1, 2), 'stop', 7, 0) if isinstance(found, str) else found)


def text_of(question: Any) -> str:
    """The question itself, as its answer."""
    return question.prompt if isinstance(question.prompt, str) else question.prompt[-1].text
