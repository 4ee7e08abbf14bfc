"""Selects the lines to measure: the chosen ones, for each batch size and context length."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from vipllava_jax.benchmark.measure import STEPS
from vipllava_jax.benchmark.timing import OURS, Line
from vipllava_jax.config import Config
from vipllava_jax.model.cost import Costs, Work

Sides = Mapping[str, Any]  # by name; an object with a method for each line that it supports


def lines(
    sides: Sides, costs: Costs, what: Sequence[str], batches: Sequence[int], contexts: Sequence[int]
) -> Iterator[Line]:
    """The lines in the order of measurement, grouped by batch size and context length."""
    if 'compile' in what:
        yield from compiling(sides[OURS], batches[0], contexts[0] - STEPS)
    for batch in batches:
        if 'vision' in what:
            yield of_images(sides, costs, batch)
        for context in contexts:
            for name in ('prefill', 'first-token', 'decode', 'generate'):
                if name in what:
                    yield of_text(sides, costs, name, batch, context)


def of_images(sides: Sides, costs: Costs, batch: int) -> Line:
    runs = playing(sides, 'vision', batch)
    return Line('vision', 'an image', batch, runs, (costs.vision(batch),), (batch, 'images/s'))


def of_text(sides: Sides, costs: Costs, name: str, batch: int, context: int) -> Line:
    """A line about tokens: a prompt and its answer fill the context; 'decode' starts after the context."""
    prompt = context - STEPS
    prefill, vision = costs.prefill(batch, prompt), costs.vision(batch)
    steps = costs.decode(batch, prompt + STEPS / 2)
    size, work, tokens = {
        'prefill': (f'{prompt}', (prefill,), batch * prompt),
        'first-token': (f'{prompt}', (vision, prefill), batch),
        'decode': (f'{context}…{context + STEPS}', (costs.decode(batch, context + STEPS / 2),), batch),
        'generate': (f'{prompt} + {STEPS}', (vision, prefill, times(steps, STEPS - 1)), batch * STEPS),
    }[name]
    runs = playing(sides, name, batch, context if name == 'decode' else prompt)
    return Line(name, size, batch, runs, work, (tokens, 'tokens/s'))


def compiling(ours: Any, batch: int, tokens: int) -> Iterator[Line]:
    """The lines about compiling: cold with an empty persistent cache, warm with the programs in it."""
    for name, most in (('compile, cold', 1), ('compile, warm', 3)):
        runs = {OURS: partial(ours.compilation, batch, tokens)}
        yield Line(name, f'{tokens} + {STEPS}', batch, runs, most=most, warm_up=False)


def check(cfg: Config, contexts: Sequence[int]) -> None:
    """Raises ValueError for a context that is too short for a picture, or too long for the model."""
    least, most = cfg.vision.patches + 2 + STEPS, cfg.text.context - STEPS
    for context in contexts:
        if not least <= context <= most:
            raise ValueError(f'--context {context}: this model can be measured from {least} to {most} tokens')


def playing(sides: Sides, name: str, *args: int) -> dict[str, Any]:
    """The functions that prepare the line of this name, for each side that supports it."""
    method = name.replace('-', '_')
    return {
        side: partial(getattr(player, method), *args)
        for side, player in sides.items()
        if hasattr(player, method)
    }


def times(work: Work, n: int) -> Work:
    return Work(work.bytes * n, work.flop * n)
