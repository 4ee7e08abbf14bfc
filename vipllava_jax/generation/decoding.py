"""Generation of answers: one prefill, then decoding in chunks of a static number of steps.

The decoding state is donated to each chunk, so that its buffers are updated in place.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vipllava_jax.config import Config
from vipllava_jax.generation.finite import explain
from vipllava_jax.generation.next_token import NewTokens, no_tokens
from vipllava_jax.generation.plan import GenerationPlan, plan
from vipllava_jax.generation.programs import NOT_FINITE, decode_chunk, prefill_batch
from vipllava_jax.generation.result import Generation
from vipllava_jax.generation.rows import of_first_process, place_rows, to_host
from vipllava_jax.generation.settings import GenerationSettings, with_overrides
from vipllava_jax.generation.state import map_state
from vipllava_jax.generation.stopping import AnswerEnds
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of, sharding
from vipllava_jax.threads import background

CHUNK = 8  # decode steps per call: 30 ms on a fast GPU; the next call starts before the host reads the tokens


def generate(
    params: Params,
    batch: Batch,
    *,
    cfg: Config,
    settings: GenerationSettings | None = None,
    processor: Processor | None = None,
    **overrides: Any,
) -> Generation:
    """The complete answers to a batch of B prompts; arguments and errors are those of `stream`.

    With `num_return_sequences` n above 1, the n answers to a prompt follow one another.
    """
    chosen = with_overrides(settings, overrides)
    answers = TokenStream(params, plan(params, batch, cfg, chosen, processor))
    for _ in answers:
        pass
    return answers.generation()


def stream(
    params: Params,
    batch: Batch,
    *,
    cfg: Config,
    settings: GenerationSettings | None = None,
    processor: Processor | None = None,
    **overrides: Any,
) -> 'TokenStream':
    """Yields the answers of a batch as arrays (B·n)×t of new tokens, with padding after a row's end.

    `settings` default to greedy decoding; `overrides` replace single fields, as in
    `stream(params, batch, cfg=cfg, temperature=0.7, seed=1)`. `processor` turns tokens into text and is
    required with `stop`: a row then ends with the token that completes a stop string. The functions in
    `processors` are called while the programs are compiled, once for each function, with traced arrays.

    Raises TypeError for an unknown setting or an argument of another type, and ValueError before anything
    runs if a setting is out of range, the placeholders do not match the images, or prompt and answer exceed
    the context of the model; and at the first tokens if their logits hold NaN or infinity, naming the weights
    that do.
    """
    chosen = with_overrides(settings, overrides)
    return TokenStream(params, plan(params, batch, cfg, chosen, processor))


class TokenStream(Iterator[np.ndarray]):
    """An iterator over the new tokens of a batch, (B·n)×t; `ends` is where the answers have ended so far."""

    def __init__(self, params: Params, plan: GenerationPlan) -> None:
        self.plan = plan
        self._pieces = [no_tokens(len(plan.ends.limits), plan.top)]  # and what has been yielded
        self._tokens = self._run(params)

    @property
    def ends(self) -> AnswerEnds:
        return self.plan.ends

    def __next__(self) -> np.ndarray:
        return next(self._tokens)

    def generation(self) -> Generation:
        """The answers so far; complete when the iterator has ended. Before, some have no finish reason."""
        return Generation.of(self._pieces, self.ends, self.plan.settings)

    def _run(self, params: Params) -> Iterator[np.ndarray]:
        plan, ends, mesh = self.plan, self.plan.ends, mesh_of(params)
        seconds = self._clock(mesh)
        rows = place_rows(plan.rows, mesh)
        state, newest = prefill_batch(params, *rows, **plan.shapes, **plan.static)
        remaining = int(ends.limits.max())
        while remaining and not ends.all_ended:
            chunk = newest
            if remaining > chunk.tokens.shape[1]:  # start the next chunk before waiting for this one
                state, newest = decode_chunk(params, state, steps=CHUNK, **plan.static)
            piece = on_host(chunk, len(ends.limits), remaining)
            if (piece.tokens == NOT_FINITE).any():
                raise ValueError(explain(params, plan.batch))
            remaining -= piece.tokens.shape[1]
            piece = dataclasses.replace(piece, tokens=ends.push(piece.tokens, seconds()))
            self._pieces.append(piece)
            yield piece.tokens

    def _clock(self, mesh: Mesh | None) -> Callable[[], float]:
        """A function that returns the seconds since now, the same in all processes; 0 without a max_time."""
        start = time.monotonic()
        if np.isinf(self.ends.max_time).all():
            return lambda: 0.0
        return lambda: of_first_process(time.monotonic() - start, mesh)


def on_host(new: NewTokens, rows: int, steps: int) -> NewTokens:
    """The first rows and steps of new tokens as NumPy arrays; the others are padding."""
    return jax.tree.map(lambda x: to_host(x)[:rows, :steps], new)


def compile_for(
    params: Params,
    batch: Batch,
    *,
    cfg: Config,
    settings: GenerationSettings | None = None,
    processor: Processor | None = None,
    **overrides: Any,
) -> None:
    """Compiles the two programs that `stream` runs with these arguments, in parallel.

    The params may be shapes with shardings, on the device or mesh on which the weights will be.
    """
    chosen = plan(params, batch, cfg, with_overrides(settings, overrides), processor)
    mesh = mesh_of(params)
    rows = place_rows(chosen.rows, mesh)
    traced = prefill_batch.trace(params, *rows, **chosen.shapes, **chosen.static)

    def placed(x: Any, letters: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(letters, x.shape, mesh))

    state = map_state(placed, traced.out_info[0])
    wait = background(traced.lower().compile)
    if chosen.ends.limits.max() > 1:
        decode_chunk.lower(params, state, steps=CHUNK, **chosen.static).compile()
    wait()
