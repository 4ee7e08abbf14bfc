"""Generation of answers: one prefill, then decoding in chunks of a static number of steps.

The decoding state is donated to each chunk, so that its buffers are updated in place.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from vipllava_jax.config import Config
from vipllava_jax.generation.beams.search import compile_beams, search
from vipllava_jax.generation.finite import explain
from vipllava_jax.generation.logits.next_token import NewTokens, no_tokens
from vipllava_jax.generation.lookup import Checked, RowQueues, lookup_chunk
from vipllava_jax.generation.plan import GenerationPlan, make_plan
from vipllava_jax.generation.prefix import Prefix, map_prefix, prefix_of_row
from vipllava_jax.generation.programs import NOT_FINITE, decode_chunk, prefill_batch
from vipllava_jax.generation.result import Generation
from vipllava_jax.generation.rows import clock, place_rows, to_host
from vipllava_jax.generation.settings import GenerationSettings, with_overrides
from vipllava_jax.generation.state import State, map_state
from vipllava_jax.generation.stopping import AnswerEnds
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of, placed_shape
from vipllava_jax.threads import background

LOOKUP_STEPS = 4  # steps per call with prompt lookup; each gives up to prompt_lookup_num_tokens + 1 tokens
CHUNK = 8  # decode steps per call: 30 ms on a fast GPU; the next call starts before the host reads the tokens


def generate(
    params: Params,
    batch: Batch,
    *,
    cfg: Config,
    settings: GenerationSettings | None = None,
    processor: Processor | None = None,
    prefix: Prefix | None = None,
    **overrides: Any,
) -> Generation:
    """The complete answers to a batch of B prompts; arguments and errors are those of `stream`.

    With `num_return_sequences` n above 1, the n answers to a prompt follow one another. With `num_beams`
    above 1, they are the n best that beam search finds, the best first; with a temperature, the continuations
    that it compares are sampled.
    """
    plan = make_plan(params, batch, cfg, with_overrides(settings, overrides), processor, prefix)
    if plan.settings.num_beams > 1:
        return search(params, plan, processor)
    answers = TokenStream(params, plan)
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
    prefix: Prefix | None = None,
    **overrides: Any,
) -> 'TokenStream':
    """Yields the answers of a batch as arrays (B·n)×t of new tokens, with padding after a row's end.

    `settings` default to greedy decoding; `overrides` replace single fields, as in
    `stream(params, batch, cfg=cfg, temperature=0.7, seed=1)`. `processor` turns tokens into text and is
    required with `stop`: a row then ends with the token that completes a stop string. `prefix` holds the
    first ids of all prompts, which the batch holds, too, and is not computed again. The functions in
    `processors` are called while the programs are compiled, once for each function, with traced arrays.

    Raises TypeError for an unknown setting or an argument of another type, and ValueError before anything
    runs if a setting is out of range, the placeholders do not match the images, a row does not begin with the
    prefix, or prompt and answer exceed the context of the model; and at the first tokens if their logits hold
    NaN or infinity, naming the weights that do.
    """
    chosen = with_overrides(settings, overrides)
    if chosen.num_beams > 1:
        raise ValueError(
            f'num_beams is {chosen.num_beams}, but beams cannot be streamed, because the best is known only '
            'at the end: call generate, or set num_beams to 1'
        )
    return TokenStream(params, make_plan(params, batch, cfg, chosen, processor, prefix))


class TokenStream(Iterator[np.ndarray]):
    """An iterator over the new tokens of a batch, (B·n)×t; `ends` is where the answers have ended so far."""

    def __init__(self, params: Params, plan: GenerationPlan) -> None:
        self.plan = plan
        self._queues = RowQueues(len(plan.ends.limits))
        self._pieces = [no_tokens(len(plan.ends.limits), plan.top)]  # and what has been yielded
        self._tokens = self._run(params)
        self._state: State | None = None  # the newest

    @property
    def ends(self) -> AnswerEnds:
        return self.plan.ends

    def __next__(self) -> np.ndarray:
        return next(self._tokens)

    def generation(self) -> Generation:
        """The answers so far; complete when the iterator has ended. Before, some have no finish reason."""
        return Generation.of(self._pieces, self.ends, self.plan.settings)

    def computed(self) -> Prefix:
        """The prompt and its answer so far, as a prefix of prompts that continue them; it ends the iterator.

        Raises ValueError before the first tokens, and if the batch has several rows.
        """
        state, plan = self._state, self.plan
        if state is None or len(plan.ends.limits) > 1:
            raise ValueError('only a batch of one row whose generation has begun can become a prefix')
        self._tokens = iter(())
        images = plan.batch.images[0, : plan.batch.image_counts[0]]
        if plan.prefix is not None:
            images = np.concatenate([plan.prefix.images, images])
        return prefix_of_row(state, images, plan.cfg)

    def _run(self, params: Params) -> Iterator[np.ndarray]:
        ends, mesh = self.plan.ends, mesh_of(params)
        seconds = clock(ends.max_time, mesh)
        for chunk in one_ahead(self._chunks(params)):
            for piece in self._on_host(chunk):
                if (piece.tokens == NOT_FINITE).any():
                    raise ValueError(explain(params, self.plan.batch))
                remaining = int((ends.limits - ends.lengths).max())
                piece = jax.tree.map(lambda x, n=remaining: x[:, :n], piece)
                piece = dataclasses.replace(piece, tokens=ends.push(piece.tokens, seconds()))
                self._pieces.append(piece)
                yield piece.tokens
            if ends.all_ended:
                return

    def _chunks(self, params: Params) -> Iterator[NewTokens | Checked]:
        """The tokens of the prefill and of as many chunks as the longest answer may need, on the device."""
        plan = self.plan
        rows = place_rows(plan.rows, mesh_of(params))
        state, first, prompts = prefill_batch(params, *rows, plan.prefix_arrays, **plan.shapes, **plan.static)
        self._state, prefix = state, plan.decoding_prefix(prompts)
        yield first
        drafted = plan.settings.prompt_lookup_num_tokens
        for _ in range(-(-(int(plan.ends.limits.max()) - 1) // (LOOKUP_STEPS if drafted else CHUNK))):
            new: NewTokens | Checked
            if drafted:
                state, new = lookup_chunk(
                    params, state, prefix, cfg=plan.cfg, steps=LOOKUP_STEPS, drafted=drafted
                )
            else:
                state, new = decode_chunk(params, state, prefix, steps=CHUNK, **plan.static)
            self._state = state
            yield new

    def _on_host(self, chunk: NewTokens | Checked) -> Iterator[NewTokens]:
        """The tokens of a chunk as NumPy arrays, in pieces that have as many tokens in every active row."""
        ends = self.plan.ends
        chunk = jax.tree.map(lambda x: to_host(x)[: len(ends.limits)], chunk)
        if isinstance(chunk, NewTokens):
            yield chunk
            return
        self._queues.add(chunk)
        while (tokens := self._queues.take(ends.active, ends.pad)).shape[1]:
            yield NewTokens(tokens)


def one_ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each after the next one has been started."""
    previous = next(items)
    for item in items:
        yield previous
        previous = item
    yield previous


def compile_for(
    params: Params,
    batch: Batch,
    *,
    cfg: Config,
    settings: GenerationSettings | None = None,
    processor: Processor | None = None,
    prefix: Prefix | None = None,
    **overrides: Any,
) -> None:
    """Compiles the two programs that `generate` runs with these arguments, in parallel.

    The params may be shapes with shardings, on the device or mesh on which the weights will be.
    """
    plan = make_plan(params, batch, cfg, with_overrides(settings, overrides), processor, prefix)
    if plan.settings.num_beams > 1:
        return compile_beams(params, plan)
    mesh = mesh_of(params)
    rows = place_rows(plan.rows, mesh)
    traced = prefill_batch.trace(params, *rows, plan.prefix_arrays, **plan.shapes, **plan.static)

    placed = partial(placed_shape, mesh=mesh)
    state = map_state(placed, traced.out_info[0])
    shared = plan.decoding_prefix(map_prefix(placed, traced.out_info[2]))
    wait = background(traced.lower().compile)
    drafted = plan.settings.prompt_lookup_num_tokens
    if drafted:
        lookup_chunk.lower(params, state, shared, cfg=cfg, steps=LOOKUP_STEPS, drafted=drafted).compile()
    elif plan.ends.limits.max() > 1:
        decode_chunk.lower(params, state, shared, steps=CHUNK, **plan.static).compile()
    wait()
