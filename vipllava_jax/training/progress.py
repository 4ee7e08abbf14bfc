"""Shows the progress of a run: a table at its start, then a live line on a terminal, or plain lines."""

import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from vipllava_jax.messages import printable

PAUSE = 0.1  # seconds between two changes of the line on a terminal
LONGEST = 4096  # characters of a value, which may be a path


class Silent:
    """Progress that shows nothing: the interface of `train`'s `progress`, to be subclassed."""

    def __enter__(self) -> 'Silent':
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def checking(self, done: int, total: int) -> None:
        """Called with the number of rows checked, and the total."""

    def loading(self, done: int, total: int, name: str) -> None:
        """Called with the bytes of weights loaded, the total, and the name of the last weight."""

    def begin(self, about: Mapping[str, str], step: int, steps: int, every: int) -> None:
        """Called before the first step: a description, the steps done, the total, and the steps per line."""

    def step(self, record: Mapping[str, Any]) -> None:
        """Called with each step's record, as in the metrics."""

    def note(self, text: str) -> None:
        """Called with a line about an occasional event."""


class Progress(Silent):
    """Shows progress on stderr."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self._live: Any = None

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def checking(self, done: int, total: int) -> None:
        self._show(f'checking row {done:,} of {total:,}')

    def loading(self, done: int, total: int, name: str) -> None:
        self._show(f'loading {done / 1e9:.2f} of {total / 1e9:.2f} GB')

    def begin(self, about: Mapping[str, str], step: int, steps: int, every: int) -> None:
        self.steps, self.every, self._first, self._shown = steps, every, step + 1, 0.0
        self._clock = Clock()
        width = max(map(len, about))
        for name, value in about.items():
            line = f'{name:<{width}}  {printable(value, LONGEST)}'
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._show(f'step {step + 1}/{steps}  compiling …')

    def step(self, record: Mapping[str, Any]) -> None:
        step, looked, now = record['step'], 'eval_loss' in record, time.perf_counter()
        left = self._clock.left(self.steps - step, record)
        due = now - self._shown > PAUSE if self.console.is_terminal else step % self.every == 0
        if due or looked or step in (self._first, self.steps):
            line = sentence(record, self.steps, left)
            if looked or not self.console.is_terminal:
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


class Clock:
    """Estimates the remaining time from the median of the last steps."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=51)

    def left(self, steps: int, record: Mapping[str, Any]) -> float | None:
        """The seconds that `steps` more steps take, after one with this record; None if unknown.

        A step that had to be compiled, whose record has no rates, is ignored.
        """
        if 'tokens_per_second' in record:
            self._seconds.append(record['seconds'])
        if not self._seconds:
            return None
        return steps * sorted(self._seconds)[len(self._seconds) // 2]


def sentence(record: Mapping[str, Any], steps: int, left: float | None) -> str:
    """A step's record as a line."""
    parts = [
        f'step {record["step"]}/{steps}',
        f'loss {record["loss"]:.4f}',
        f'rate {record["rate"]:.2e}',
        *([f'{record["tokens_per_second"]:,.0f} tokens/s'] if 'tokens_per_second' in record else []),
        *([f'MFU {record["mfu"]:.1%}'] if record.get('mfu') else []),
        *([] if left is None else [f'{duration(left)} left']),
        f'{memory() / 1e9:.1f} GB',
        *([f'held out {record["eval_loss"]:.4f}'] if 'eval_loss' in record else []),
    ]
    return '  '.join(parts)


def duration(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'


def memory() -> int:
    """The peak memory in bytes, of the device if it reports it, or else of this process."""
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if stats and 'peak_bytes_in_use' in stats:
        return stats['peak_bytes_in_use']
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == 'darwin' else most * 1024
