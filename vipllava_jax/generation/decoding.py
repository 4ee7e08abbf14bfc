"""Generation of answers: one prefill, then decoding in chunks of a static number of steps.

The decoding state is donated to each chunk, so that its buffers are updated in place.
"""

import dataclasses
import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from vipllava_jax.config import Config
from vipllava_jax.generation.finite import explain
from vipllava_jax.generation.sampling import Sampling, pick
from vipllava_jax.inputs.processor import Batch, bucket
from vipllava_jax.model import vipllava
from vipllava_jax.model.llama import Cache
from vipllava_jax.model.vipllava import Params
from vipllava_jax.threads import background

NOT_FINITE = -1  # the first token of a row whose logits hold NaN or infinity
CHUNK = 8  # decode steps per call: 30 ms on a fast GPU; the next call starts before the host reads the tokens


class Generation(NamedTuple):
    """The answers to a batch of prompts."""

    tokens: np.ndarray  # Bxn, including the end token, followed by padding
    lengths: np.ndarray  # B, the number of tokens of each answer, including the end token
    finished: np.ndarray  # B, whether the row ended with an end token rather than at max_new_tokens


@struct.dataclass
class State:
    """The state of decoding, for each row of a batch."""

    cache: Cache
    tokens: Array  # B, the newest tokens, which are not yet in the cache
    positions: Array  # B, the positions of these tokens
    done: Array  # B, whether the row has ended
    sampling: Sampling | None


@partial(jax.jit, static_argnames=('cfg', 'slots'))
def start(params: Params, batch: Batch, sampling: Sampling | None, *, cfg: Config, slots: int) -> State:
    """Prefills the cache with the prompts of a batch -> the state, with the first new token of each row.

    The token is NOT_FINITE for a row whose logits hold NaN or infinity.
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
    positions = jnp.asarray(batch.lengths)
    tokens = pick(logits, sampling, positions)
    # The tokens report this, because the host reads them anyway: the check takes no extra transfer.
    tokens = jnp.where(jnp.isfinite(logits).all(axis=-1), tokens, NOT_FINITE)
    return State(cache, tokens, positions, ended(tokens, cfg), sampling)


@partial(jax.jit, static_argnames=('cfg', 'steps'), donate_argnames='state')
def advance(params: Params, state: State, *, cfg: Config, steps: int) -> tuple[State, Array]:
    """Decodes `steps` tokens per row -> the new state, and the tokens BT, with padding after a row's end."""

    def step(state: State, _: None) -> tuple[State, Array]:
        logits, cache = vipllava.decode(params, state.tokens, state.cache, state.positions, cfg=cfg)
        positions = jnp.where(state.done, state.positions, state.positions + 1)
        tokens = jnp.where(state.done, cfg.pad, pick(logits, state.sampling, positions))
        done = state.done | ended(tokens, cfg)
        return State(cache, tokens, positions, done, state.sampling), tokens

    state, tokens = jax.lax.scan(step, state, length=steps)
    return state, tokens.T


def ended(tokens: Array, cfg: Config) -> Array:
    """Whether each of the tokens ends an answer."""
    return jnp.isin(tokens, jnp.array(cfg.eos, tokens.dtype))


def stream(
    params: Params,
    batch: Batch,
    *,
    cfg: Config,
    max_new_tokens: int | None = None,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    seed: int | None = None,
    eos: int | Sequence[int] | None = None,
) -> Iterator[np.ndarray]:
    """Yields the answers of a batch as arrays Bxn of new tokens, with padding after a row's end.

    `max_new_tokens` defaults to 512, or to what the context leaves if that is less. At temperature 0, the
    most likely token is selected; above, tokens are sampled with one key per row, derived from `seed` (None:
    a random one) and the row's index. `temperature`, `top_k` (0: all) and `top_p` (1: all) are one number or
    one per row. `eos` are the ids that end an answer (None: those of the config).

    Raises ValueError before anything runs if a setting is out of range, the placeholders do not match the
    images, or prompt and answer exceed the context of the model; and at the first tokens if their logits hold
    NaN or infinity, naming the weights that do.
    """
    return _stream(params, batch, *_planned(batch, cfg, max_new_tokens, temperature, top_k, top_p, seed, eos))


def _planned(
    batch: Batch,
    cfg: Config,
    max_new_tokens: int | None = None,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    seed: int | None = None,
    eos: int | Sequence[int] | None = None,
) -> tuple[Sampling | None, Config, int]:
    """The settings of `stream` -> the sampling, the config with `eos`, the number of tokens to generate."""
    cfg = _ending(cfg, eos)
    vipllava.check(batch.tokens, batch.images, batch.image_counts, cfg, batch.lengths)
    new = room(batch, cfg, max_new_tokens)
    return _sampling(len(batch.tokens), temperature, top_k, top_p, seed), cfg, new


def _stream(
    params: Params, batch: Batch, sampling: Sampling | None, cfg: Config, new: int
) -> Iterator[np.ndarray]:
    state = start(params, batch, sampling, cfg=cfg, slots=bucket(batch.tokens.shape[1] + new))
    coming = state.tokens[:, None]
    done = np.zeros(len(batch.tokens), bool)
    while new > 0:
        ready = coming
        if new > ready.shape[1]:  # start the next chunk before waiting for this one
            state, coming = advance(params, state, cfg=cfg, steps=CHUNK)
        tokens = np.asarray(ready)[:, :new]
        if (tokens == NOT_FINITE).any():
            raise ValueError(explain(params, batch))
        yield tokens
        new -= tokens.shape[1]
        done |= np.isin(tokens, cfg.eos).any(axis=1)
        if done.all():
            return


def compile_for(params: Params, batch: Batch, *, cfg: Config, **settings: Any) -> None:
    """Compiles the two programs that `stream` runs with these arguments, in parallel.

    The params may be shapes with shardings, all on the device on which the weights will be.
    """
    sampling, cfg, new = _planned(batch, cfg, **settings)
    begun = start.trace(params, batch, sampling, cfg=cfg, slots=bucket(batch.tokens.shape[1] + new))
    where = jax.tree.leaves(params)[0].sharding
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), begun.out_info)
    first = background(begun.lower().compile)
    if new > 1:
        advance.lower(params, state, cfg=cfg, steps=CHUNK).compile()
    first()


def generate(
    params: Params, batch: Batch, *, cfg: Config, eos: int | Sequence[int] | None = None, **settings: Any
) -> Generation:
    """The complete answers to a batch; settings and errors are those of `stream`."""
    cfg = _ending(cfg, eos)
    tokens = np.concatenate(list(stream(params, batch, cfg=cfg, **settings)), axis=1)
    ends = np.isin(tokens, cfg.eos)
    finished = np.asarray(ends.any(axis=1))
    lengths = np.where(finished, ends.argmax(axis=1) + 1, tokens.shape[1])
    return Generation(tokens[:, : lengths.max()], lengths, finished)


def room(batch: Batch, cfg: Config, max_new_tokens: int | None) -> int:
    """The number of tokens to generate; raises ValueError if the context of the model is too short."""
    longest = int(np.max(batch.lengths))
    left = cfg.text.context - longest
    new = min(512, max(left, 1)) if max_new_tokens is None else max_new_tokens
    if int(new) != new or new < 1:
        raise ValueError(f'max_new_tokens is {new}, but must be a whole number from 1')
    if new > left:
        told = f'ask for at most {left} new' if left > 0 else 'shorten the prompt'
        raise ValueError(
            f'a prompt of {longest} tokens and {new} new exceed the {cfg.text.context} of the model: {told}'
        )
    return int(new)


def _ending(cfg: Config, eos: int | Sequence[int] | None) -> Config:
    """The config with `eos` as the ids that end an answer, or unchanged if `eos` is None."""
    return cfg if eos is None else dataclasses.replace(cfg, eos=tuple(map(int, np.atleast_1d(eos))))


def _sampling(
    B: int,
    temperature: float | Sequence[float],
    top_k: int | Sequence[int],
    top_p: float | Sequence[float],
    seed: int | None,
) -> Sampling | None:
    """The settings of `stream` as arrays B with one key per row; None if every row is greedy."""
    for name, given in (('temperature', temperature), ('top_k', top_k), ('top_p', top_p)):
        if np.shape(given) not in ((), (B,)):
            raise ValueError(f'{name} has the shape {np.shape(given)}: give one number, or {B}, one a row')
    t, k, p = (np.broadcast_to(np.asarray(x), B) for x in (temperature, top_k, top_p))
    for name, x, good, range_ in [
        ('temperature', t, (t >= 0) & np.isfinite(t), 'finite and not below 0'),
        ('top_k', k, (k >= 0) & (k == np.floor(k)), 'a whole number, 0 for all'),
        ('top_p', p, (p > 0) & (p <= 1), 'above 0 and at most 1'),
    ]:
        if not good.all():
            raise ValueError(f'{name} is {x[~good][0]}, but must be {range_}')
    if not t.any():
        return None
    key = jax.random.key(secrets.randbits(32) if seed is None else seed)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(B))
    return Sampling(jnp.float32(t), jnp.int32(k), jnp.float32(p), keys)
