"""Wakes tasks of the event loop from the thread of the engine, at little cost for the engine."""

import asyncio
import threading
from collections.abc import Callable


class Wakeups:
    """Calls functions in the event loop; many calls of one moment cost the loop one interruption.

    The engine writes to all its rows at once, and a system call for each would hold up the next step.
    """

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def call(self, loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
        """Calls a function in the loop soon, from any thread; RuntimeError if the loop is closed."""
        with self._lock:
            if not self._waiting:
                loop.call_soon_threadsafe(self._run)
            self._waiting.append(function)

    def _run(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for function in waiting:
            function()
