"""Times one line of the table; its sides are the implementations to compare, measured in turns."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median, quantiles

from vipllava_jax.benchmark.memory import HostMemory
from vipllava_jax.ceilings import Ceilings
from vipllava_jax.model.cost import Work

OURS = 'vipllava-jax'
NO_MEMORY = 'does not fit in memory'
OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'OutOfMemory')  # in the messages of jax and of torch
Run = Callable[[], float]  # runs the task once, returns the seconds taken


@dataclass(frozen=True)
class Line:
    """A task to be measured: for each side, by name, the function that prepares a run."""

    what: str
    size: str  # a description of the input size
    batch: int
    sides: Mapping[str, Callable[[], Run]]
    work: tuple[Work, ...] = ()  # the minimum cost of each phase
    output: tuple[float, str] = (0, '')  # the amount of output, and the unit of its rate
    max_repeats: int | None = None  # set for slow tasks
    warm_up: bool = True
    memory: bool = False  # whether to measure host memory

    def __str__(self) -> str:
        return f'{self.what}, ' + (f'batch {self.batch}, ' if self.batch else '') + self.size

    def floor(self, ceilings: Ceilings) -> float:
        return sum(map(ceilings.floor, self.work))

    def bound(self, ceilings: Ceilings) -> str:
        """The rate that bounds the longest phase: 'bandwidth' or 'matmul'."""
        return ceilings.bound(max(self.work, key=ceilings.floor)) if self.work else ''


@dataclass
class Side:
    """The measurements of one side of a line."""

    samples: list[float] = field(default_factory=list)  # seconds
    warm_up: float = 0  # seconds before the first sample, including compilation
    memory: float = 0  # peak of host memory in bytes
    fault: str = ''

    @property
    def out_of_memory(self) -> bool:
        """Whether the device ran out of memory, which is a result and not a failure of the benchmark."""
        return self.fault == NO_MEMORY

    @property
    def median(self) -> float | None:
        return median(self.samples) if self.samples else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """The first and third quartiles of the samples; None if there are fewer than three."""
        if len(self.samples) < 3:
            return None
        low, _, high = quantiles(self.samples, n=4, method='inclusive')
        return low, high


@dataclass
class Result:
    line: Line
    sides: dict[str, Side]


def measure_line(line: Line, repeats: int) -> Result:
    """Measures a line; the error of a side that fails is recorded, and the other sides continue."""
    result = Result(line, {name: Side() for name in line.sides})
    runs: dict[str, Run] = {}
    for name, prepare in line.sides.items():
        side = result.sides[name]
        with recorded(side):
            begin = time.perf_counter()
            run = prepare()
            for _ in range(2 * line.warm_up):  # twice: some compilers record a graph only after a first run
                run()
            side.warm_up = time.perf_counter() - begin
            runs[name] = run
    for _ in range(min(repeats, line.max_repeats or repeats)):
        for name, run in runs.items():
            side = result.sides[name]
            if not side.fault:
                with recorded(side), HostMemory() if line.memory else nullcontext() as memory:
                    side.samples.append(run())
                side.memory = max(side.memory, memory.peak if memory else 0)
    return result


@contextmanager
def recorded(side: Side) -> Iterator[None]:
    """Records an exception in the context as the side's fault."""
    try:
        yield
    except Exception as error:  # an error must not lose the results of the other lines
        message = ' '.join(f'{type(error).__name__}: {error}'.split())
        no_memory = isinstance(error, MemoryError) or any(sign in message for sign in OUT_OF_MEMORY)
        side.fault = NO_MEMORY if no_memory else message[:200]
    if side.fault:
        gc.collect()  # frees the buffers of the failed run
