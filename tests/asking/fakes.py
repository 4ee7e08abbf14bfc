"""An engine without a model: it answers from a thread of its own, in random order."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.fake_engine import FakeReply, WaitingQuestions
from vipllava_jax.engine.pieces import Answer


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
        found = self.answer(reply.question)
        if isinstance(found, str):
            reply.end((Answer(found, (1, 2), 'stop', 7, 0),))
        else:
            reply.end((), found)


def text_of(question: Any) -> str:
    """The question itself, as its answer."""
    return question.prompt if isinstance(question.prompt, str) else question.prompt[-1].text
