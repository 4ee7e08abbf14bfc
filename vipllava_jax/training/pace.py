"""Measures how long each step takes, while the host prepares the next one in parallel."""

import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax


class Watched(NamedTuple):
    """A step that the device is computing."""

    completed: Future[float]  # when, on the clock
    compiled: bool  # whether its program had to be compiled first


class Pace:
    """Measures the time from one step's completion to the next.

    A thread waits for each step. The host may be busy when a step completes: if it recorded the time, one
    step would seem too slow and the next one too fast.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        wait: Callable[[Any], Any] = jax.block_until_ready,
    ):
        self._clock, self._wait = clock, wait
        self._thread = ThreadPoolExecutor(1)
        self._known: set[Hashable] = set()
        self._last = clock()

    def watch(self, numbers: Any, shape: Hashable) -> Watched:
        """Starts to wait for the results of a step on a batch of a given shape."""
        compiled = shape not in self._known
        self._known.add(shape)
        return Watched(self._thread.submit(self._completion, numbers), compiled)

    def _completion(self, numbers: Any) -> float:
        self._wait(numbers)
        return self._clock()

    def seconds(self, step: Watched) -> float:
        """Waits for a step; returns the time since the completion of the previous one."""
        completed = step.completed.result()
        seconds, self._last = completed - self._last, completed
        return seconds

    def resume(self) -> None:
        """Excludes the time since the last completion from the next step's time."""
        self._last = self._clock()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def rates(seconds: float, tokens: int, flop: float, peak: float | None) -> dict[str, float]:
    """Tokens and operations per second, for a step's record; `peak` is the device's maximum.

    A rate above the peak is left out, because then the time or the peak is wrong.
    """
    if seconds <= 0:
        return {}
    found = {'tokens_per_second': round(tokens / seconds, 1)}
    if peak and flop / seconds <= peak:
        found |= {'tflops': round(flop / seconds / 1e12, 2), 'mfu': round(flop / seconds / peak, 4)}
    return found
