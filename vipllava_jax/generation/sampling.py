"""Sampling: from logits to the next token of each row."""

import secrets

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.sharding import mesh_of, per_device


@struct.dataclass
class Sampling:
    """The sampling settings of each row; the tokens of a row do not depend on other rows."""

    temperature: Array  # B, 0 for greedy decoding
    top_k: Array  # B, 0 for no limit
    top_p: Array  # B, 1 for no limit
    keys: Array  # B, random keys


def sampling_of(settings: GenerationSettings, B: int) -> Sampling | None:
    """The sampling settings of B rows; None if every row is greedy; that case is compiled separately.

    A single program would make greedy steps of a 7B 2 to 3 % slower on a GPU. With a `lax.cond` around the
    sampling it costs nothing at 8 rows, but 10 % at one.

    Raises ValueError if a setting has another number of rows.
    """
    temperature, top_k, top_p = (settings.per_row(name, B) for name in ('temperature', 'top_k', 'top_p'))
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    seeds = settings.per_row('seed', B)
    if not temperature.any():
        return None
    if isinstance(seed, int):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(B))
    else:
        keys = jax.vmap(jax.random.key)(seeds.astype(np.uint32))
    return Sampling(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p), keys)


def sample(logits: Array, sampling: Sampling | None, positions: Array) -> Array:
    """Logits BV -> tokens B: the most likely, or one sampled with the row's key folded with its position.

    Decoding is greedy for rows of temperature 0, and for all rows if `sampling` is None.
    """
    greedy = most_likely(logits)
    if sampling is None:
        return greedy
    keys = jax.vmap(jax.random.fold_in)(sampling.keys, positions)
    filtered = filter_top_k_top_p(logits, sampling)
    sampled = jax.vmap(jax.random.categorical)(keys, filtered).astype(jnp.int32)
    return jnp.where(sampling.temperature > 0, sampled, greedy)


def most_likely(logits: Array) -> Array:
    """Logits BV -> the most likely tokens B; devices that hold a part of V exchange one candidate each."""
    if mesh_of(logits) is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    V = logits.shape[-1]

    def candidate(part: Array) -> Array:
        token = jnp.argmax(part, axis=-1)
        return jnp.stack([jnp.take_along_axis(part, token[:, None], axis=-1)[:, 0], jnp.float32(token)], -1)

    def best(candidates: Array, axis: str) -> Array:
        first = lax.axis_index(axis) * (V // lax.axis_size(axis))
        everywhere = lax.all_gather(candidates.at[:, 1].add(first), axis)
        winner = jnp.argmax(everywhere[:, :, 0], axis=0)  # the first, as of equal logits on one device
        return jnp.take_along_axis(everywhere, winner[None, :, None], axis=0)[0]

    return per_device(candidate, 'BV->B.', combine=best)(logits)[:, 1].astype(jnp.int32)


def filter_top_k_top_p(logits: Array, sampling: Sampling) -> Array:
    """Logits BV -> logits / temperature, -inf outside top-k and then top-p (Holtzman et al., 2020)."""
    logits = logits / jnp.maximum(sampling.temperature, 1e-6)[:, None]
    falling = jnp.sort(logits, axis=-1, descending=True)
    V = logits.shape[-1]
    k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, V), V)
    kth = jnp.take_along_axis(falling, k[:, None] - 1, axis=-1)
    falling = jnp.where(falling < kth, -jnp.inf, falling)
    p = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(p, axis=-1) - p  # the total probability of more likely tokens
    least = jnp.min(jnp.where(before < sampling.top_p[:, None], falling, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < jnp.maximum(kth, least), -jnp.inf, logits)
