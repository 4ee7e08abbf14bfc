"""Starts an engine for the model to measure, and measures the chosen parts, also with transformers."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import jax

from vipllava_jax.benchmark import engine_parts, engine_report
from vipllava_jax.benchmark.engine_parts import LoadResult, LoadSide
from vipllava_jax.benchmark.engine_words import words_processor
from vipllava_jax.benchmark.subject import Subject
from vipllava_jax.benchmark.timing import OURS, recorded
from vipllava_jax.engine.engine import Engine
from vipllava_jax.generation.model import Model

Show = Callable[[str], None]
MIN_QUEUE = 1024


@dataclass
class EngineRun:
    """The parts to measure, the arguments of the engine, and a description of it once it has started."""

    results: list[LoadResult]
    arguments: Mapping[str, Any]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> list[LoadResult]:
        return [result for result in self.results if result.sides]

    def record(self) -> dict[str, Any]:
        """What the JSON file says of the parts measured so far."""
        return engine_report.record(self.measured, self.about)


def measure(run: EngineRun, subject: Subject, peers: Mapping[str, Any], show: Show) -> Iterator[LoadResult]:
    """Measures each part with transformers if it is among the peers, frees its memory, and then with ours."""
    processor = words_processor(subject.cfg)
    if peers:
        from vipllava_jax.benchmark import engine_peer

        show('answering in batches with transformers')
        model = next(iter(peers.values())).model
        yield from shown(engine_peer.measure(run.results, model, processor), show)
        del model
        for peer in peers.values():
            peer.discard()
    show('starting the engine')
    model = Model(jax.tree.map(committed, subject.params), subject.cfg, processor)
    yield from shown(measure_ours(run, model), show)


def measure_ours(run: EngineRun, model: Model) -> Iterator[LoadResult]:
    """Measures each part with an engine of its own; if it does not start, every part has the error."""
    failure, begin = LoadSide(), time.perf_counter()
    with ExitStack() as stack:
        with recorded(failure):
            queue = max([MIN_QUEUE, *(result.count for result in run.results)])
            engine = stack.enter_context(Engine(model, queue=queue, **run.arguments))
        if failure.fault:
            for result in run.results:
                result.sides[OURS] = failure
                yield result
            return
        start = time.perf_counter() - begin
        for result in engine_parts.measure(run.results, engine):
            run.about = description(engine, start, run.arguments)
            yield result


def committed(x: jax.Array) -> jax.Array:
    """An array that stays on its device, as loaded weights do; programs are compiled for such arrays."""
    return x if x.committed else jax.device_put(x, x.sharding)


def description(engine: Engine, start: float, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the engine, the seconds that its start took, and what it compiled afterwards."""
    stats = engine.stats()
    sizes = {name: getattr(stats, name) for name in ('rows', 'long_rows', 'slots', 'compilations')}
    return {**sizes, 'exact': bool(arguments.get('exact')), 'start_s': start}


def shown(results: Iterator[LoadResult], show: Show) -> Iterator[LoadResult]:
    """The results, each after a line about it."""
    for result in results:
        show(f'{result}: {engine_report.sentence(result)}')
        yield result


def plan(
    subject: Subject, parts: Sequence[str], count: int, percents: Sequence[int], **arguments: Any
) -> EngineRun:
    """What to measure, and the arguments of the engine, without those that it chooses itself."""
    chosen = {name: value for name, value in arguments.items() if value is not None}
    return EngineRun(engine_parts.planned(subject.cfg, parts, count, percents), chosen)
