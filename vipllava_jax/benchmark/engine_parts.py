"""The parts of the engine's benchmark: which requests are sent when, and what is recorded."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

from vipllava_jax.benchmark import engine_load
from vipllava_jax.benchmark.engine_load import Load, Timing, send, send_in_turn
from vipllava_jax.benchmark.engine_requests import (
    MIXED_NEW,
    MIXED_TEXT,
    NEW,
    QUESTION,
    TEXT,
    Request,
    Requests,
    poisson_arrivals,
)
from vipllava_jax.benchmark.timing import OURS, Side, recorded
from vipllava_jax.config import Config

REPEATS = 3
LONE = 5  # requests, one after another
WARM_UP = 32  # requests
QUESTIONS = 128  # the most questions about one picture
SEEDS = 100  # seeds per part


@dataclass
class LoadSide(Side):
    """The repeats of one implementation; `samples` has the seconds of each."""

    loads: list[Load] = field(default_factory=list)

    def add(self, load: Load) -> None:
        self.loads.append(load)
        self.samples.append(load.seconds)

    @property
    def rate(self) -> float | None:
        """The median of the repeats, in requests per second."""
        return median(load.rate for load in self.loads) if self.loads else None

    @property
    def rows_in_use(self) -> float | None:
        shares = [load.rows_in_use for load in self.loads if load.rows_in_use is not None]
        return mean(shares) if shares else None

    @property
    def timings(self) -> list[Timing]:
        """Those of all requests of all repeats."""
        return [timing for load in self.loads for timing in load.timings]


@dataclass
class LoadResult:
    """A part of the benchmark and its measurements."""

    part: str
    size: str  # a description of the lengths of prompts and answers
    count: int  # requests per repeat
    random_requests: Callable[[int, int], list[Request]]  # of a count and a seed
    repeats: int = REPEATS
    seed: int = 0  # the first; parts share no picture, which the prefix store would keep
    percent: int | None = None  # arrivals: their rate relative to saturation
    offered: float | None = None  # the same in requests per second
    sides: dict[str, LoadSide] = field(default_factory=dict)

    def __str__(self) -> str:
        share = f' at {self.percent} % of saturation' if self.percent else ''
        return f'{self.part}{share}, {self.count} requests, {self.size}'

    def requests(self, repeat: int) -> list[Request]:
        """The requests of a repeat, from 1 on, or the fewer ones of the warm-up, 0."""
        return self.random_requests(self.count if repeat else min(self.count, WARM_UP), self.seed + repeat)


def planned(cfg: Config, parts: Sequence[str], count: int, percents: Sequence[int]) -> list[LoadResult]:
    """The chosen parts in the order of measurement; arrivals need the saturation, so that it comes first."""
    requests, patches = Requests(cfg), cfg.vision.patches
    new, one, mixed = requests.new_pictures, requests.one_picture, requests.mixed_lengths
    size = f'{patches + TEXT} + {NEW}'
    ranges = f'{patches + MIXED_TEXT[0]}…{patches + MIXED_TEXT[1]} + {MIXED_NEW[0]}…{MIXED_NEW[1]}'
    results = {
        'saturation': [LoadResult('saturation', size, count, new)],
        'one-picture': [
            LoadResult('one-picture', f'{patches + QUESTION} + {NEW}', min(count, QUESTIONS), one)
        ],
        'mixed': [LoadResult('mixed', ranges, count, mixed)],
        'lone': [LoadResult('lone', size, LONE, new, repeats=1)],
        'arrivals': [LoadResult('arrivals', size, count, new, percent=percent) for percent in percents],
    }
    needed = {*parts, *(['saturation'] if 'arrivals' in parts else [])}
    chosen = [result for part in results if part in needed for result in results[part]]
    return [replace(result, seed=number * SEEDS) for number, result in enumerate(chosen)]


def check_lengths(cfg: Config, parts: Sequence[str]) -> None:
    """Raises ValueError if the requests of a part do not fit the context of the model."""
    longest = cfg.vision.patches + (MIXED_TEXT[1] + MIXED_NEW[1] if 'mixed' in parts else TEXT + NEW)
    if longest > cfg.text.context:
        raise ValueError(
            f'--what engine: requests and answers have up to {longest} tokens, but the context of the model '
            f'has {cfg.text.context}: choose other --engine-parts'
        )


def measure(results: Sequence[LoadResult], engine: Any) -> Iterator[LoadResult]:
    """Measures each part with an engine; the error of one is recorded, and the others continue."""
    for result in results:
        side = result.sides[OURS] = LoadSide()
        with recorded(side):
            if result.percent:
                result.offered = result.percent / 100 * saturation(results)
            begin = time.perf_counter()
            run(engine, result, 0)
            side.warm_up = time.perf_counter() - begin
            for repeat in range(1, result.repeats + 1):
                side.add(run(engine, result, repeat))
        yield result


def run(engine: Any, result: LoadResult, repeat: int) -> Load:
    """Sends the requests of a repeat one after another, at random times or all at once."""
    asked = engine_load.questions(result.requests(repeat))
    if result.part == 'lone':
        return send_in_turn(engine, asked)
    if result.offered and repeat:
        return send(engine, asked, poisson_arrivals(len(asked), result.offered, result.seed + repeat))
    return send(engine, asked)


def saturation(results: Sequence[LoadResult]) -> float:
    """The rate of the saturation, which has been measured before, in requests per second."""
    sides = next(result.sides for result in results if result.part == 'saturation')
    if (rate := sides[OURS].rate) is None:
        raise ValueError('the saturation could not be measured')
    return rate
