"""Sends requests to an engine at given times, and records when their tokens arrive."""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vipllava_jax.benchmark.engine_requests import TEMPLATE, Request
from vipllava_jax.engine.question import Question
from vipllava_jax.generation.settings import GenerationSettings


class Timing(NamedTuple):
    """When the tokens of an answer arrived, in seconds after its request was due."""

    first: float | None  # None: the implementation returns whole answers
    end: float
    new: int

    @property
    def per_token(self) -> float | None:
        """The mean time between tokens; None for a single token."""
        return None if self.first is None or self.new < 2 else (self.end - self.first) / (self.new - 1)


class Load(NamedTuple):
    """How a number of requests were answered."""

    seconds: float  # from the first request to the last answer
    timings: tuple[Timing, ...]
    rows_in_use: float | None = None  # the mean share of rows that a decoding step was computed for
    cached_tokens: int = 0  # tokens of prompts whose prefill was skipped

    @property
    def rate(self) -> float:
        """Requests per second."""
        return len(self.timings) / self.seconds


def questions(requests: Iterable[Request]) -> list[Question]:
    """The requests as an engine takes them."""
    return [
        Question(prompt, [picture], settings=GenerationSettings(max_new_tokens=new), template=TEMPLATE)
        for prompt, picture, _, new in requests
    ]


def send(engine: Any, asked: Sequence[Question], due: Sequence[float] | None = None) -> Load:
    """Submits questions when they are due, in seconds from now, or all at once, and waits for all answers.

    The delay of a question that is submitted late is part of its time.
    """
    due = [0.0] * len(asked) if due is None else due
    before, begin = engine.stats(), time.perf_counter()
    replies = []
    for question, at in zip(asked, due, strict=True):
        time.sleep(max(0.0, begin + at - time.perf_counter()))
        replies.append(engine.submit(question))
    answers = [reply.result() for reply in replies]
    seconds, after = time.perf_counter() - begin, engine.stats()
    timings = []
    for question, reply, (answer,), at in zip(asked, replies, answers, due, strict=True):
        check_length(question, answer)
        first, finished = reply.times.first_token - begin - at, reply.times.finished - begin - at
        timings.append(Timing(first, finished, len(answer.ids)))
    computed = after.lane_steps - before.lane_steps
    rows_in_use = (after.row_steps - before.row_steps) / computed if computed else None
    return Load(seconds, tuple(timings), rows_in_use, after.cached_tokens - before.cached_tokens)


def check_length(question: Question, answer: Any) -> None:
    """Raises ValueError for an answer that ended early, because rates would be too high."""
    expected = question.settings.max_new_tokens if question.settings else None
    if len(answer.ids) != expected:
        raise ValueError(f'an answer has {len(answer.ids)} tokens, expected {expected}')


def send_in_turn(engine: Any, asked: Sequence[Question]) -> Load:
    """Submits each question when the one before has been answered."""
    loads = [send(engine, [question]) for question in asked]
    timings = [timing for load in loads for timing in load.timings]
    cached = sum(load.cached_tokens for load in loads)
    return Load(sum(load.seconds for load in loads), tuple(timings), None, cached)
