"""Selects the lines to measure: the chosen ones, for each batch size and context length."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from vipllava_jax.benchmark.measure import STEPS
from vipllava_jax.benchmark.timing import OURS, Line
from vipllava_jax.config import Config
from vipllava_jax.model.cost import Costs, Work

Sides = Mapping[str, Any]  # the implementations by name: objects with a method for each line they support


def lines(
    sides: Sides, costs: Costs, what: Sequence[str], batches: Sequence[int], contexts: Sequence[int]
) -> Iterator[Line]:
    """The lines in the order of measurement, grouped by batch size and context length."""
    if 'compile' in what:
        yield from compile_lines(sides[OURS], batches[0], contexts[0] - STEPS)
    for batch in batches:
        if 'vision' in what:
            yield vision_line(sides, costs, batch)
        for context in contexts:
            for name in ('prefill', 'first-token', 'decode', 'generate'):
                if name in what:
                    yield text_line(sides, costs, name, batch, context)


def vision_line(sides: Sides, costs: Costs, batch: int) -> Line:
    runs = runs_of(sides, 'vision', batch)
    return Line('vision', 'an image', batch, runs, (costs.vision(batch),), (batch, 'images/s'))


def text_line(sides: Sides, costs: Costs, name: str, batch: int, context: int) -> Line:
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
    runs = runs_of(sides, name, batch, context if name == 'decode' else prompt)
    return Line(name, size, batch, runs, work, (tokens, 'tokens/s'))


def compile_lines(ours: Any, batch: int, tokens: int) -> Iterator[Line]:
    """The lines about compiling: cold with an empty persistent cache, warm with the programs in it."""
    for name, repeats in (('compile, cold', 1), ('compile, warm', 3)):
        runs = {OURS: partial(ours.compilation, batch, tokens)}
        yield Line(name, f'{tokens} + {STEPS}', batch, runs, max_repeats=repeats, warm_up=False)


def check_contexts(cfg: Config, contexts: Sequence[int]) -> None:
    """Raises ValueError for a context that is too short for a picture, or too long for the model."""
    shortest, longest = cfg.vision.patches + 2 + STEPS, cfg.text.context - STEPS
    for context in contexts:
        if not shortest <= context <= longest:
            raise ValueError(
                f'--context {context}: this model can be measured from {shortest} to {longest} tokens'
            )


def runs_of(sides: Sides, name: str, *args: int) -> dict[str, Any]:
    """The functions that prepare the line of this name, for each side that supports it."""
    method = name.replace('-', '_')
    return {
        side: partial(getattr(implementation, method), *args)
        for side, implementation in sides.items()
        if hasattr(implementation, method)
    }


def times(work: Work, n: int) -> Work:
    return Work(work.bytes * n, work.flop * n)
