"""How long each step takes, although the device works at one while the host prepares the next."""

import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax


class Watched(NamedTuple):
    """A step under way."""

    completed: Future[float]  # when, on the clock
    compiled: bool  # whether its program had to be compiled first


class Pace:
    """Measures steps from one completion to the next.

    A thread waits for each step: the host may be busy when a step completes, and if it noted the time only
    when it looks, one step would seem too slow and the next one faster than the device is.
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
        """Begins to wait for what a step has been asked to compute from a batch of a shape."""
        compiled = shape not in self._known
        self._known.add(shape)
        return Watched(self._thread.submit(self._completion, numbers), compiled)

    def _completion(self, numbers: Any) -> float:
        self._wait(numbers)
        return self._clock()

    def seconds(self, step: Watched) -> float:
        """The time from the completion of the step before to that of this one; waits for it."""
        completed = step.completed.result()
        seconds, self._last = completed - self._last, completed
        return seconds

    def resume(self) -> None:
        """Leaves out of the next step's time what has been done since the last one completed."""
        self._last = self._clock()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def rates(seconds: float, tokens: int, flop: float, peak: float | None) -> dict[str, float]:
    """Tokens and operations per second, for a step's record; `peak` is what the device can do at most.

    What would be more than that is left out: then the clock or the peak is wrong, and the number with it.
    """
    if seconds <= 0:
        return {}
    told = {'tokens_per_second': round(tokens / seconds, 1)}
    if peak and flop / seconds <= peak:
        told |= {'tflops': round(flop / seconds / 1e12, 2), 'mfu': round(flop / seconds / peak, 4)}
    return told
