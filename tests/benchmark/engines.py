"""An engine for tests of its benchmark: it answers every question in words after a given time."""

import threading
import time
from types import SimpleNamespace
from typing import Any


class Reply:
    """A reply whose first and last tokens arrive after some seconds."""

    def __init__(self, first: float, end: float, new: int, fault: str = ''):
        now = time.perf_counter()
        self.times = SimpleNamespace(submitted=now, first_token=now + first, finished=now + end)
        self.new, self.fault = new, fault

    def result(self, timeout: float | None = None) -> tuple[Any, ...]:
        time.sleep(max(0.0, self.times.finished - time.perf_counter()))
        if self.fault:
            raise RuntimeError(self.fault)
        return (SimpleNamespace(ids=tuple(range(self.new)), text='w7'),)


class Engine:
    """Records what it is asked and when; `rows` rows, of which three quarters are in use."""

    made: list['Engine'] = []

    def __init__(
        self,
        model: Any = None,
        *,
        first: float = 0.01,
        end: float = 0.02,
        fault: str = '',
        missing: int = 0,
        **arguments: Any,
    ):
        self.model, self.first, self.end, self.fault, self.arguments = model, first, end, fault, arguments
        self.missing = missing  # tokens at the end of each answer
        self.questions: list[Any] = []
        self.at: list[float] = []
        self.closed = False
        Engine.made.append(self)

    def __enter__(self) -> 'Engine':
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def submit(self, question: Any) -> Reply:
        assert threading.current_thread() is threading.main_thread()
        self.questions.append(question)
        self.at.append(time.perf_counter())
        new = question.settings.max_new_tokens - self.missing
        return Reply(self.first, self.end, new, self.fault)

    def stats(self) -> SimpleNamespace:
        done = len(self.questions)
        steps = {'row_steps': 10 * done * 3, 'lane_steps': 10 * done * 4, 'cached_tokens': 100 * done}
        return SimpleNamespace(rows=4, long_rows=1, slots=1024, compilations=0, **steps)
