"""How a line of the table is timed: every side is prepared and warmed up, then they take turns."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median, quantiles

from vipllava_jax.benchmark.ceilings import Ceilings
from vipllava_jax.benchmark.cost import Work
from vipllava_jax.benchmark.memory import Anonymous

OURS = 'vipllava-jax'
NO_ROOM = 'does not fit the memory'
Run = Callable[[], float]  # does the work once -> its seconds


@dataclass(frozen=True)
class Line:
    """One piece of work, and what prepares each side's way to do it."""

    what: str
    size: str  # in words
    batch: int
    sides: Mapping[str, Callable[[], Run]]
    work: tuple[Work, ...] = ()  # what it costs, phase by phase
    output: tuple[float, str] = (0, '')  # how much of what comes out of it
    most: int | None = None  # repeats, where more would take too long
    warm_up: bool = True
    memory: bool = False  # whether to watch that of the host

    def __str__(self) -> str:
        return f'{self.what}, ' + (f'batch {self.batch}, ' if self.batch else '') + self.size

    def floor(self, ceilings: Ceilings) -> float:
        return sum(map(ceilings.floor, self.work))

    def bound(self, ceilings: Ceilings) -> str:
        """The rate that bounds the longest phase."""
        return ceilings.bound(max(self.work, key=ceilings.floor)) if self.work else ''


@dataclass
class Side:
    """What was measured of one side of a line."""

    samples: list[float] = field(default_factory=list)  # seconds
    warm_up: float = 0  # seconds before the first sample, compilation included
    memory: float = 0  # bytes of the host, at most
    fault: str = ''

    @property
    def full(self) -> bool:
        return self.fault == NO_ROOM

    @property
    def median(self) -> float | None:
        return median(self.samples) if self.samples else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """A quarter of the samples lie below the first, a quarter above the second."""
        if len(self.samples) < 3:
            return None
        low, _, high = quantiles(self.samples, n=4, method='inclusive')
        return low, high


@dataclass
class Result:
    line: Line
    sides: dict[str, Side]


def measure(line: Line, repeats: int) -> Result:
    """A line's result; a side that fails says why, and the others go on without it."""
    result = Result(line, {name: Side() for name in line.sides})
    runs: dict[str, Run] = {}
    for name, prepare in line.sides.items():
        side = result.sides[name]
        with _noted(side):
            begin = time.perf_counter()
            run = prepare()
            for _ in range(2 * line.warm_up):  # twice: some compilers record only what they have seen before
                run()
            side.warm_up = time.perf_counter() - begin
            runs[name] = run
    for _ in range(min(repeats, line.most or repeats)):
        for name, run in runs.items():
            side = result.sides[name]
            if not side.fault:
                with _noted(side), Anonymous() if line.memory else nullcontext() as watched:
                    side.samples.append(run())
                side.memory = max(side.memory, watched.peak if watched else 0)
    return result


@contextmanager
def _noted(side: Side) -> Iterator[None]:
    """Makes what goes wrong within a side's fault."""
    try:
        yield
    except Exception as error:  # whatever it is, the other lines are worth having
        told = ' '.join(f'{type(error).__name__}: {error}'.split())
        full = 'RESOURCE_EXHAUSTED' in told or 'OutOfMemory' in told or isinstance(error, MemoryError)
        side.fault = NO_ROOM if full else told[:200]
    if side.fault:
        gc.collect()  # the buffers of what was under way
