"""Sampling: from logits to the next token of each row."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class Sampling:
    """The sampling settings of each row; the tokens of a row do not depend on other rows."""

    temperature: Array  # B, 0 for greedy decoding
    top_k: Array  # B, 0 for no limit
    top_p: Array  # B, 1 for no limit
    keys: Array  # B, random keys


def pick(logits: Array, sampling: Sampling | None, positions: Array) -> Array:
    """Logits BV -> tokens B: the most likely, or one sampled with the row's key folded with its position.

    Decoding is greedy for rows of temperature 0, and for all rows if `sampling` is None.
    """
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if sampling is None:
        return likeliest
    keys = jax.vmap(jax.random.fold_in)(sampling.keys, positions)
    drawn = jax.vmap(jax.random.categorical)(keys, keep(logits, sampling)).astype(jnp.int32)
    return jnp.where(sampling.temperature > 0, drawn, likeliest)


def keep(logits: Array, sampling: Sampling) -> Array:
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
