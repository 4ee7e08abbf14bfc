"""Selects the lines to measure: the chosen ones, for each batch size and context length."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jax.sharding import Mesh

from vipllava_jax.benchmark.measure import QUESTION, STEPS
from vipllava_jax.benchmark.timing import OURS, Line
from vipllava_jax.config import Config
from vipllava_jax.mesh_text import row_parts
from vipllava_jax.model.cost import Costs, Work

Sides = Mapping[str, Any]  # the implementations by name: objects with a method for each line they support


@dataclass(frozen=True)
class Shares:
    """Into how many parts a mesh divides the rows of a batch, and the heads, MLP and vocabulary."""

    rows: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, mesh: Mesh | None) -> 'Shares':
        """The parts on a mesh; one of each without a mesh."""
        sizes = mesh.shape if mesh else {}
        return cls(row_parts(sizes), sizes.get('tensor', 1))

    def per_device(self, work: Callable[[int], Work], batch: int) -> Work:
        """The work of one device, given the work of a number of rows."""
        return times(work(-(-batch // self.rows)), 1 / self.tensor)


def lines(
    sides: Sides,
    costs: Costs,
    what: Sequence[str],
    batches: Sequence[int],
    contexts: Sequence[int],
    shares: Shares = Shares(),
) -> Iterator[Line]:
    """The lines in the order of measurement, grouped by batch size and context length.

    On a mesh, the batch is that of all devices, and the work of a line that of one device.
    """
    if 'compile' in what:
        yield from compile_lines(sides[OURS], batches[0], contexts[0] - STEPS)
    for batch in batches:
        if 'vision' in what:
            yield vision_line(sides, costs, batch, shares)
        for context in contexts:
            for name in ('prefill', 'first-token', 'decode', 'decode-shared', 'generate', 'questions'):
                if name in what:
                    yield text_line(sides, costs, name, batch, context, shares)


def vision_line(sides: Sides, costs: Costs, batch: int, shares: Shares) -> Line:
    runs = runs_of(sides, 'vision', batch)
    work = shares.per_device(costs.vision, batch)
    return Line('vision', 'an image', batch, runs, (work,), (batch, 'images/s'))


def text_line(sides: Sides, costs: Costs, name: str, batch: int, context: int, shares: Shares) -> Line:
    """A line about tokens: a prompt and its answer fill the context; 'decode' starts after the context."""
    prompt = context - STEPS
    vision = shares.per_device(costs.vision, batch)
    prefill = shares.per_device(lambda rows: costs.prefill(rows, prompt), batch)
    first = prompt - QUESTION  # the tokens that the questions share

    def step(start: int, shared: int = 0) -> Work:
        return shares.per_device(lambda rows: costs.decode(rows, start + STEPS / 2, shared), batch)

    prefix = (
        shares.per_device(costs.vision, 1),
        shares.per_device(lambda rows: costs.prefill(rows, first), 1),
    )
    rest = shares.per_device(lambda rows: costs.prefill(rows, QUESTION), batch)
    size, work, tokens = {
        'prefill': (f'{prompt}', (prefill,), batch * prompt),
        'first-token': (f'{prompt}', (vision, prefill), batch),
        'decode': (f'{context}…{context + STEPS}', (step(context),), batch),
        'decode-shared': (f'{context}…{context + STEPS}', (step(context, context - STEPS),), batch),
        'generate': (f'{prompt} + {STEPS}', (vision, prefill, times(step(prompt), STEPS - 1)), batch * STEPS),
        'questions': (
            f'{first} + {QUESTION} + {STEPS}',
            (*prefix, rest, times(step(prompt, first), STEPS - 1)),
            batch,
        ),
    }[name]
    runs = runs_of(sides, name, batch, context if name.startswith('decode') else prompt)
    return Line(name, size, batch, runs, work, (tokens, 'questions/s' if name == 'questions' else 'tokens/s'))


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


def check_batches(batches: Sequence[int], shares: Shares) -> None:
    """Raises ValueError for a batch that the mesh does not divide: it would measure padding."""
    for batch in batches:
        if batch % shares.rows:
            raise ValueError(
                f'--batch {batch}: the mesh divides the rows by {shares.rows}; give multiples of it, such as '
                f'{shares.rows},{8 * shares.rows}'
            )


def runs_of(sides: Sides, name: str, *args: int) -> dict[str, Any]:
    """The functions that prepare the line of this name, for each side that supports it."""
    method = name.replace('-', '_')
    return {
        side: partial(getattr(implementation, method), *args)
        for side, implementation in sides.items()
        if hasattr(implementation, method)
    }


def times(work: Work, n: float) -> Work:
    return Work(work.bytes * n, work.flop * n)
