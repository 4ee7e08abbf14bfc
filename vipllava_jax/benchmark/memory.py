"""Measures the anonymous memory that a task takes; mapped files and the page cache do not count."""

import threading
from pathlib import Path

STATUS = Path('/proc/self/status')


class HostMemory:
    """Samples this process's anonymous memory; `peak` is the largest increase over the start, in bytes."""

    def __enter__(self) -> 'HostMemory':
        self.peak, self._start, self._done = 0.0, anonymous_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.01):
            self.peak = max(self.peak, anonymous_bytes() - self._start)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def anonymous_bytes() -> float:
    """The bytes of this process's anonymous memory; 0 where the system does not report it."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith('RssAnon')), 0.0)
