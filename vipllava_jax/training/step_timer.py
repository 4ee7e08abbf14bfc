"""Measures how long each step takes, while the host prepares the next one in parallel."""

import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax


class TimedStep(NamedTuple):
    """A step that the device is computing."""

    completion: Future[float]  # the clock's time at which the step was complete
    compiled: bool  # whether its program had to be compiled first


class StepTimer:
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
        self._compiled_shapes: set[Hashable] = set()
        self._last_completion = clock()

    def start(self, results: Any, shape: Hashable) -> TimedStep:
        """Starts to wait for the results of a step on a batch of a given shape."""
        compiled = shape not in self._compiled_shapes
        self._compiled_shapes.add(shape)
        return TimedStep(self._thread.submit(self._wait_for, results), compiled)

    def _wait_for(self, results: Any) -> float:
        self._wait(results)
        return self._clock()

    def seconds(self, step: TimedStep) -> float:
        """Waits for a step; returns the time since the completion of the previous one."""
        completion = step.completion.result()
        seconds, self._last_completion = completion - self._last_completion, completion
        return seconds

    def skip_pause(self) -> None:
        """Excludes the time since the last completion from the next step's time."""
        self._last_completion = self._clock()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def throughput(seconds: float, tokens: int, flop: float, peak: float | None) -> dict[str, float]:
    """Tokens and operations per second, for a step's record; `peak` is the devices' maximum of the latter.

    Operations per second above the peak are left out, because then the time or the peak is wrong.
    """
    if seconds <= 0:
        return {}
    rates = {'tokens_per_second': round(tokens / seconds, 1)}
    if peak and flop / seconds <= peak:
        rates |= {'tflops': round(flop / seconds / 1e12, 2), 'mfu': round(flop / seconds / peak, 4)}
    return rates
