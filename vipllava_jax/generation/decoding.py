"""Generation of answers: one prefill, then decoding in chunks of a static number of steps.

The decoding state is donated to each chunk, so that its buffers are updated in place.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vipllava_jax.config import Config
from vipllava_jax.generation.finite import explain
from vipllava_jax.generation.model import Model
from vipllava_jax.generation.result import Generation
from vipllava_jax.generation.rows import place_rows, to_host
from vipllava_jax.generation.sampling import Sampling, sample, sampling_of
from vipllava_jax.generation.settings import DEFAULT_NEW_TOKENS, GenerationSettings, with_overrides
from vipllava_jax.generation.state import State, eos_rows, map_state, pin_state, write_ids
from vipllava_jax.generation.stopping import AnswerEnds, RowStops, end_ids
from vipllava_jax.inputs.batch import Batch, bucket
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.messages import brief
from vipllava_jax.model import vipllava
from vipllava_jax.model.input_checks import check_inputs
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of, pin, sharding
from vipllava_jax.threads import background

NOT_FINITE = -1  # the first token of a row whose logits hold NaN or infinity
MAX_FUSED_EOS = 64  # more end ids per row are compared by a reduction, which compiles faster
CHUNK = 8  # decode steps per call: 30 ms on a fast GPU; the next call starts before the host reads the tokens


@partial(jax.jit, static_argnames=('cfg', 'slots'))
def prefill_batch(
    params: Params, batch: Batch, sampling: Sampling | None, eos: Array, *, cfg: Config, slots: int
) -> State:
    """Prefills a cache with the prompts of a batch -> the state, with the first new token of each row.

    `eos` BE are the ids that end each answer, as returned by `eos_rows`. The token is NOT_FINITE for a row
    whose logits hold NaN or infinity.
    """
    logits, cache = vipllava.prefill(
        params,
        batch.tokens,
        batch.images,
        lengths=batch.lengths,
        slots=slots,
        cfg=cfg,
        image_counts=batch.image_counts,
    )
    prompt = jnp.asarray(batch.tokens, jnp.int32)
    positions = jnp.asarray(batch.lengths, jnp.int32)
    tokens = sample(logits, sampling, positions)
    # The tokens report this, because the host reads them anyway: the check takes no extra transfer.
    tokens = jnp.where(jnp.isfinite(logits).all(axis=-1), tokens, NOT_FINITE)
    ids = jnp.pad(prompt, ((0, 0), (0, slots - prompt.shape[1])), constant_values=cfg.pad)
    ids = write_ids(ids, tokens[:, None], positions)
    state = State(cache, ids, tokens, positions, is_end(tokens, eos), jnp.asarray(eos), sampling)
    return pin_state(state, mesh_of(params))


@partial(jax.jit, static_argnames=('cfg', 'steps'), donate_argnames='state')
def decode_chunk(params: Params, state: State, *, cfg: Config, steps: int) -> tuple[State, Array]:
    """Decodes `steps` tokens per row -> the new state, and the tokens BT, with padding after a row's end.

    `state` is donated: it cannot be used afterwards.
    """

    def step(state: State, _: None) -> tuple[State, Array]:
        logits, cache = vipllava.decode(params, state.tokens, state.cache, state.positions, cfg=cfg)
        positions = jnp.where(state.done, state.positions, state.positions + 1)
        tokens = jnp.where(state.done, cfg.pad, sample(logits, state.sampling, positions))
        done = state.done | is_end(tokens, state.eos)
        state = dataclasses.replace(state, cache=cache, tokens=tokens, positions=positions, done=done)
        state = pin_state(state, mesh)
        return state, state.tokens

    mesh = mesh_of(params)
    first = state.positions + 1
    state, stacked = jax.lax.scan(step, state, length=steps)
    tokens = stacked.T
    # Once per chunk, because nothing reads the ids between its steps.
    state = dataclasses.replace(state, ids=write_ids(state.ids, tokens, first))
    return pin_state(state, mesh), pin(tokens, 'BT', mesh)


def is_end(tokens: Array, eos: Array) -> Array:
    """Whether each of the tokens B is among the ids eos BE that end its row."""
    B, E = eos.shape
    if E > MAX_FUSED_EOS:
        return (tokens[:, None] == eos).any(axis=-1)
    # Without a reduction, which would be another kernel in every step.
    return functools.reduce(jnp.logical_or, (tokens == eos[:, e] for e in range(E)), jnp.zeros(B, bool))


class GenerationPlan(NamedTuple):
    """The arguments of the two programs, and where the answers end."""

    sampling: Sampling | None
    eos: np.ndarray  # BE
    slots: int
    ends: AnswerEnds


class TokenStream(Iterator[np.ndarray]):
    """An iterator over the new tokens of a batch, Bxn; `ends` is where the answers have ended so far."""

    def __init__(self, chunks: Iterator[np.ndarray], ends: AnswerEnds) -> None:
        self._chunks, self.ends = chunks, ends

    def __next__(self) -> np.ndarray:
        return next(self._chunks)


def generate(
    params: Params,
    batch: Batch,
    *,
    cfg: Config,
    settings: GenerationSettings | None = None,
    processor: Processor | None = None,
    **overrides: Any,
) -> Generation:
    """The complete answers to a batch of B prompts; arguments and errors are those of `stream`."""
    chosen = with_overrides(settings, overrides)
    plan = _plan(params, batch, cfg, chosen, processor)
    tokens = np.concatenate(list(_stream(params, batch, cfg, plan)), axis=1)
    lengths, reasons = plan.ends.lengths, tuple(plan.ends.reasons)
    finished = np.array([reason == 'stop' for reason in reasons])
    stop, keep_stop = tuple(chosen.stop), chosen.keep_stop
    return Generation(tokens[:, : lengths.max()], lengths, finished, reasons, stop, keep_stop)


def stream(
    params: Params,
    batch: Batch,
    *,
    cfg: Config,
    settings: GenerationSettings | None = None,
    processor: Processor | None = None,
    **overrides: Any,
) -> TokenStream:
    """Yields the answers of a batch as arrays Bxn of new tokens, with padding after a row's end.

    `settings` default to greedy decoding; `overrides` replace single fields, as in
    `stream(params, batch, cfg=cfg, temperature=0.7, seed=1)`. `processor` turns tokens into text and is
    required with `stop`: a row then ends with the token that completes a stop string.

    Raises TypeError for an unknown setting or an argument of another type, and ValueError before anything
    runs if a setting is out of range, the placeholders do not match the images, or prompt and answer exceed
    the context of the model; and at the first tokens if their logits hold NaN or infinity, naming the weights
    that do.
    """
    plan = _plan(params, batch, cfg, with_overrides(settings, overrides), processor)
    return TokenStream(_stream(params, batch, cfg, plan), plan.ends)


def _plan(
    params: Params, batch: Batch, cfg: Config, settings: GenerationSettings, processor: Processor | None
) -> GenerationPlan:
    if isinstance(params, Model):
        raise TypeError('params is a Model: pass model.params')
    if not isinstance(batch, Batch):
        raise TypeError(f'batch is {brief(batch)}, expected a Batch, as model.processor returns')
    B, T = batch.tokens.shape
    check_inputs(batch.tokens, batch.images, batch.image_counts, cfg, batch.lengths)
    eos = end_ids(settings, cfg, processor)
    row_stops = [RowStops(processor, settings.stop) for _ in range(B)] if processor and settings.stop else []
    limits = max_new_tokens_for(batch, cfg, settings.max_new_tokens)
    slots = bucket(T + int(limits.max()))
    ends = AnswerEnds(limits, eos, cfg.pad, row_stops)
    return GenerationPlan(sampling_of(settings, B), eos_rows(eos, B), slots, ends)


def _stream(params: Params, batch: Batch, cfg: Config, plan: GenerationPlan) -> Iterator[np.ndarray]:
    slots, ends = plan.slots, plan.ends
    rows, sampling, eos = place_rows((batch, plan.sampling, plan.eos), mesh_of(params))
    state = prefill_batch(params, rows, sampling, eos, cfg=cfg, slots=slots)
    newest = state.tokens[:, None]
    remaining = int(ends.limits.max())
    while remaining and not ends.all_ended:
        chunk = newest
        if remaining > chunk.shape[1]:  # start the next chunk before waiting for this one
            state, newest = decode_chunk(params, state, cfg=cfg, steps=CHUNK)
        tokens = to_host(chunk)[: len(ends.limits), :remaining]
        if (tokens == NOT_FINITE).any():
            raise ValueError(explain(params, batch))
        remaining -= tokens.shape[1]
        yield ends.push(tokens)


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
    plan = _plan(params, batch, cfg, with_overrides(settings, overrides), processor)
    mesh = mesh_of(params)
    rows, sampling, eos = place_rows((batch, plan.sampling, plan.eos), mesh)
    traced = prefill_batch.trace(params, rows, sampling, eos, cfg=cfg, slots=plan.slots)

    def placed(x: Any, letters: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(letters, x.shape, mesh))

    state = map_state(placed, traced.out_info)
    wait = background(traced.lower().compile)
    if plan.ends.limits.max() > 1:
        decode_chunk.lower(params, state, cfg=cfg, steps=CHUNK).compile()
    wait()


def max_new_tokens_for(batch: Batch, cfg: Config, max_new_tokens: int | Sequence[int] | None) -> np.ndarray:
    """The maximum number of tokens of each answer, B; raises ValueError if the context is too short for it.

    None is 512, or what the context leaves to the longest prompt if that is less.
    """
    B, context = len(batch.lengths), cfg.text.context
    if max_new_tokens is None:
        max_new_tokens = min(DEFAULT_NEW_TOKENS, max(context - int(batch.lengths.max()), 1))
    limits = GenerationSettings(max_new_tokens=max_new_tokens).per_row('max_new_tokens', B)
    row = (batch.lengths + limits).argmax()
    length, new = int(batch.lengths[row]), int(limits[row])
    left = context - length
    if new > left:
        advice = f'request at most {left} new tokens' if left > 0 else 'shorten the prompt'
        raise ValueError(
            f'row {row}: a prompt of {length} tokens and {new} new ones exceed the context of {context}: '
            f'{advice}'
        )
    return limits
