"""Shows the progress of a run: a table at its start, then a live line on a terminal, or plain lines."""

import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from vipllava_jax.messages import duration, printable

REFRESH_SECONDS = 0.1  # the minimum time between two updates of the line on a terminal
MAX_VALUE = 4096  # characters of a value in the table, which may be a path


class ProgressListener:
    """Receives the progress of a run, and shows nothing; subclasses override the methods they need."""

    def __enter__(self) -> 'ProgressListener':
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def rows_checked(self, done: int, total: int) -> None:
        """Called with the number of rows checked, and the total."""

    def weights_loaded(self, done: int, total: int, name: str) -> None:
        """Called with the bytes of weights loaded, the total, and the name of the last weight."""

    def run_started(self, description: Mapping[str, str], done: int, steps: int, log_every: int) -> None:
        """Called before the first step: a table, the steps done, the total, and the steps between lines."""

    def step_done(self, record: Mapping[str, Any]) -> None:
        """Called with each step's record, as in the metrics."""

    def note(self, text: str) -> None:
        """Called with a line about an occasional event."""


class ConsoleProgress(ProgressListener):
    """Shows progress on stderr."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self._live: Any = None
        self._shown = 0.0  # the time of the last line
        self._steps, self._first, self._log_every = 0, 1, 1
        self._estimate = RemainingTime()

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def rows_checked(self, done: int, total: int) -> None:
        self._show(f'checked {done:,} of {total:,} rows')

    def weights_loaded(self, done: int, total: int, name: str) -> None:
        self._show(f'loaded {done / 1e9:.2f} of {total / 1e9:.2f} GB')

    def run_started(self, description: Mapping[str, str], done: int, steps: int, log_every: int) -> None:
        self._steps, self._first, self._log_every = steps, done + 1, log_every
        width = max(map(len, description))
        for name, value in description.items():
            line = f'{name:<{width}}  {printable(value, MAX_VALUE)}'
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._show(f'step {done + 1}/{steps}  compiling …')

    def step_done(self, record: Mapping[str, Any]) -> None:
        step, evaluated, now = record['step'], 'eval_loss' in record, time.perf_counter()
        seconds = self._estimate.update(self._steps - step, record)
        if self.console.is_terminal:
            is_due = now - self._shown > REFRESH_SECONDS
        else:
            is_due = step % self._log_every == 0
        if is_due or evaluated or step in (self._first, self._steps):
            line = step_line(record, self._steps, seconds)
            if evaluated or not self.console.is_terminal:
                self.note(line)
            self._show(line)
            self._shown = now

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _show(self, line: str) -> None:
        """Updates the live line on a terminal."""
        from rich.live import Live
        from rich.text import Text

        if not self.console.is_terminal:
            return
        if not self._live:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        self._live.update(Text(line, overflow='ellipsis', no_wrap=True), refresh=True)


class RemainingTime:
    """Estimates the remaining time of a run from the median of the last steps."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=51)

    def update(self, steps: int, record: Mapping[str, Any]) -> float | None:
        """The seconds that `steps` more steps take, after one with this record; None if unknown.

        A step that had to be compiled, whose record has no rates, is ignored.
        """
        if 'tokens_per_second' in record:
            self._seconds.append(record['seconds'])
        if not self._seconds:
            return None
        return steps * sorted(self._seconds)[len(self._seconds) // 2]


def step_line(record: Mapping[str, Any], steps: int, remaining: float | None) -> str:
    """A step's record as a line; `remaining` seconds."""
    parts = [
        f'step {record["step"]}/{steps}',
        f'loss {record["loss"]:.4f}',
        f'learning rate {record["learning_rate"]:.2e}',
        *([f'{record["tokens_per_second"]:,.0f} tokens/s'] if 'tokens_per_second' in record else []),
        *([f'MFU {record["mfu"]:.1%}'] if record.get('mfu') else []),
        *([] if remaining is None else [f'{duration(remaining)} left']),
        f'{peak_memory() / 1e9:.1f} GB',
        *([f'held-out loss {record["eval_loss"]:.4f}'] if 'eval_loss' in record else []),
    ]
    return '  '.join(parts)


def peak_memory() -> int:
    """The peak memory in bytes, of the device if it reports it, or else of this process."""
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if stats and 'peak_bytes_in_use' in stats:
        return stats['peak_bytes_in_use']
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024
