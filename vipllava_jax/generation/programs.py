"""The two compiled programs of generation: the prefill, and a chunk of decoding steps."""

import dataclasses
import functools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vipllava_jax.config import Config
from vipllava_jax.generation.logits.next_token import NewTokens, reported, scores_of
from vipllava_jax.generation.logits.processing import Processing, Processor
from vipllava_jax.generation.logits.repeats import add_id, repeats_of
from vipllava_jax.generation.logits.sampling import Sampling, sample_keys, select
from vipllava_jax.generation.prefix import PrefixArrays, join_prefix, pin_prefix
from vipllava_jax.generation.state import State, pin_rows, pin_state, write_ids
from vipllava_jax.inputs.batch import Batch, bucket
from vipllava_jax.model import vipllava
from vipllava_jax.model.llama import Cache, PrefixCache
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of

NOT_FINITE = -1  # the first token of a row whose logits hold NaN or infinity
MAX_FUSED_EOS = 64  # more end ids per row are compared by a reduction, which compiles faster


@partial(jax.jit, static_argnames=('cfg', 'slots', 'samples', 'share_keys', 'top', 'processors'))
def prefill_batch(
    params: Params,
    batch: Batch,
    sampling: Sampling | None,
    eos: Array,
    processing: Processing | None = None,
    prefix: PrefixArrays | None = None,
    *,
    cfg: Config,
    slots: int,
    samples: int = 1,
    share_keys: bool = False,
    top: int | None = None,
    processors: Sequence[Processor] = (),
) -> tuple[State, NewTokens, PrefixCache | None]:
    """Prefills a cache with the prompts of a batch -> the state, and the first new token of each answer, B1.

    `eos` BE are the ids that end each answer, as returned by `eos_rows`; `top` is the number of likeliest
    tokens that are reported, None for no report. Each row becomes `samples` rows, one after the other. The
    token is NOT_FINITE for a row whose logits hold NaN or infinity, unless its processors replace them.

    With a prefix, the batch holds what follows it. With `share_keys`, the keys and values that rows share are
    stored once: those of the prefix or, without one, of the prompts of samples, which are the third result.
    `decode_chunk` takes them as its prefix.
    """
    sizes: dict[str, Any] = {'slots': slots, 'copies': samples, 'share_keys': share_keys}
    state, logits, prompts = prefilled(params, batch, sampling, eos, processing, prefix, cfg=cfg, **sizes)
    if state.sampling is not None and sampling is not None:
        own = dataclasses.replace(state.sampling, keys=sample_keys(sampling.keys, samples))
        state = dataclasses.replace(state, sampling=own)
    scores = next_scores(logits, state, state.positions, processors)
    tokens = select(scores, state.sampling, state.positions)
    # The tokens report this, because the host reads them anyway: the check takes no extra transfer.
    usable = is_usable(logits, state.processing)
    new = reported(jnp.where(usable, tokens, NOT_FINITE), logits, scores, top)
    mesh = mesh_of(params)
    ids = write_ids(state.ids, tokens[:, None], state.positions)
    state = with_token(dataclasses.replace(state, ids=ids), tokens, is_end(tokens, state.eos))
    return (
        pin_state(state, mesh),
        pin_rows(jax.tree.map(lambda x: x[:, None], new), mesh),
        pin_prefix(prompts, mesh),
    )


def prefilled(
    params: Params,
    batch: Batch,
    sampling: Sampling | None,
    eos: Array,
    processing: Processing | None,
    prefix: PrefixArrays | None = None,
    *,
    cfg: Config,
    slots: int,
    copies: int = 1,
    share_keys: bool = False,
) -> tuple[State, Array, PrefixCache | None]:
    """Prefills a cache -> the state before the first token, with each row `copies` times, and the logits.

    With `share_keys`, rows have caches of what follows the prefix or, without one, their prompts, which are
    then the third result, otherwise None. Without `share_keys`, they have caches of all tokens.
    """
    B, T = batch.tokens.shape
    logits, cache = vipllava.prefill(
        params,
        batch.tokens,
        batch.images,
        lengths=batch.lengths,
        slots=slots if share_keys == (prefix is not None) else T,
        cfg=cfg,
        image_counts=batch.image_counts,
        prefix=prefix.cache if prefix else None,
    )
    before = prefix.slots if prefix and share_keys else 0
    ids, positions = prompt_ids(batch, prefix, before + slots, cfg.pad)
    repeats = None
    if processing is not None:
        repeats = repeats_of(ids, positions, processing.no_repeat_ngram_size.max() - 1)
    prompts, dtype = None, cache.k[0].dtype
    if share_keys and prefix is None:
        prompts, cache = PrefixCache(cache.k, cache.v, positions), Cache((), ())
    elif prefix and not share_keys:
        cache = join_prefix(prefix.cache, cache, slots)
    done = jnp.zeros(B, bool)
    state = State(cache, ids, positions, positions, done, jnp.asarray(eos), sampling, processing, repeats)
    if copies > 1:
        state, logits = jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), (state, logits))
    if prompts:
        own = Cache.empty(cfg.text, B * copies, bucket(slots - T), dtype)
        state = dataclasses.replace(state, cache=own)
    return state, logits, prompts


def prompt_ids(batch: Batch, prefix: PrefixArrays | None, slots: int, pad: int) -> tuple[Array, Array]:
    """The ids BS of whole prompts, padded to `slots`, and the positions B of the first new tokens."""
    prompt, lengths = jnp.asarray(batch.tokens, jnp.int32), jnp.asarray(batch.lengths, jnp.int32)
    B, T = prompt.shape
    if prefix is None:
        return jnp.pad(prompt, ((0, 0), (0, slots - T)), constant_values=pad), lengths
    ids, before = prefix.of_rows(slots, pad, B)
    return write_ids(ids, prompt, before), before + lengths


@partial(jax.jit, static_argnames=('cfg', 'steps', 'top', 'processors'), donate_argnames='state')
def decode_chunk(
    params: Params,
    state: State,
    prefix: PrefixCache | None = None,
    *,
    cfg: Config,
    steps: int,
    top: int | None = None,
    processors: Sequence[Processor] = (),
) -> tuple[State, NewTokens]:
    """Decodes `steps` tokens per row -> the new state, and the tokens, with padding after a row's end.

    `state` is donated: it cannot be used afterwards.
    """

    def step(state: State, _: None) -> tuple[State, NewTokens]:
        logits, cache = vipllava.decode(
            params, state.tokens, state.cache, state.positions, cfg=cfg, prefix=prefix
        )
        positions = jnp.where(state.done, state.positions, state.positions + 1)
        scores = next_scores(logits, state, positions, processors)
        tokens = jnp.where(state.done, cfg.pad, select(scores, state.sampling, positions))
        done = state.done | is_end(tokens, state.eos)
        new = reported(tokens, logits, scores, top)
        state = dataclasses.replace(state, cache=cache, positions=positions)
        if state.processing is not None:  # the processors of the next step read the ids
            slots = jnp.where(state.done, state.slots, positions)
            state = dataclasses.replace(state, ids=write_ids(state.ids, tokens[:, None], slots))
        return pin_state(with_token(state, tokens, done), mesh), new

    mesh = mesh_of(params)
    first = state.positions + 1
    state, stacked = jax.lax.scan(step, state, length=steps)
    new = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), stacked)
    if state.processing is None:  # once per chunk, because nothing reads the ids between its steps
        state = dataclasses.replace(state, ids=write_ids(state.ids, new.tokens, first))
    return pin_state(state, mesh), pin_rows(new, mesh)


def next_scores(
    logits: Array, state: State, lengths: Array, processors: Sequence[Processor], keep: int = 1
) -> Array:
    """Logits BV -> the scores BV of the next tokens, with the settings of a state, as `scores_of` defines."""
    return scores_of(
        logits, state.ids, lengths, state.repeats, state.sampling, state.processing, processors, keep
    )


def with_token(state: State, tokens: Array, done: Array) -> State:
    """The state with the newest tokens B, which are in its ids if it has processors."""
    repeats = state.repeats
    if repeats is not None:
        repeats = add_id(repeats, state.ids, tokens)
    return dataclasses.replace(state, tokens=tokens, done=done, repeats=repeats)


def is_usable(logits: Array, processing: Processing | None) -> Array:
    """Whether the logits BV of each row are finite, or its processors make them so."""
    finite = jnp.isfinite(logits).all(axis=-1)
    return finite if processing is None else finite | processing.remove_invalid_values


def is_end(tokens: Array, eos: Array) -> Array:
    """Whether each of the tokens B is among the ids eos BE that end its row."""
    B, E = eos.shape
    if E > MAX_FUSED_EOS:
        return (tokens[:, None] == eos).any(axis=-1)
    # Without a reduction, which would be another kernel in every step.
    return functools.reduce(jnp.logical_or, (tokens == eos[:, e] for e in range(E)), jnp.zeros(B, bool))
