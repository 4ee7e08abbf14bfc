"""An engine without a model: it answers with the prompt, from a thread of its own and in random order."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

from tests.fake_engine import FakeReply, WaitingQuestions
from vipllava_jax.engine.question import encode
from vipllava_jax.engine.reply import Reply
from vipllava_jax.generation.settings import GenerationSettings


def text_of(question: Any) -> str:
    """The prompt of a question, or the last turn of its conversation."""
    return question.prompt if isinstance(question.prompt, str) else question.prompt[-1].text


class FakeAnswer(NamedTuple):
    text: str
    ids: tuple[int, ...]
    finish_reason: str = 'stop'
    prompt_tokens: int = 7
    cached_tokens: int = 0


class FakeEngine(WaitingQuestions):
    """`fails` maps a question to its error, if any."""

    def __init__(
        self,
        model: Any = None,
        queue: int = 1024,
        rows: int = 4,
        fails: Callable[[Any], BaseException | None] = lambda q: None,
    ):
        self.fails, self.finished = fails, 0
        self.model = model or SimpleNamespace(settings=GenerationSettings(), processor=None)
        super().__init__(queue, rows)

    def reply_to(self, question: Any) -> FakeReply:
        return FakeReply(question, ('a mark is cut off',) if 'cut' in str(question.prompt) else ())

    def stats(self) -> Any:
        return SimpleNamespace(
            rows=self.rows,
            long_rows=0,
            steps=self.finished * 8,
            row_steps=self.finished * 8 * self.rows,
            lane_steps=self.finished * 8 * self.rows,
        )

    def end(self, reply: FakeReply) -> None:
        self.finished += 1
        text, n = text_of(reply.question), reply.question.settings.num_return_sequences
        answers = tuple(FakeAnswer(f'{text} {k}' if k else text, (1,) * (k + 1)) for k in range(n))
        reply.end(answers, self.fails(reply.question))


class ReplyingEngine(FakeEngine):
    """The same for a model without weights, with replies as those of an engine: each answer has one id."""

    def reply_to(self, question: Any) -> Any:
        return Reply(encode(question, self.model), self.model.processor)

    def end(self, reply: Any) -> None:
        self.finished += 1
        question = reply.question.question
        if error := self.fails(question):
            reply.fail(error)
        for sample in range(reply.question.settings.num_return_sequences):
            reply.push(sample, [55 + sample, 2], time.perf_counter())
