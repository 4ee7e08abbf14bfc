"""From logits to the next token of each row."""

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


@struct.dataclass
class Sampling:
    """How each row draws its tokens; rows never influence each other."""

    temperature: Array  # B, 0 for the likeliest token
    top_k: Array  # B, 0 for all
    top_p: Array  # B, 1 for all
    keys: Array  # B


def pick(logits: Array, sampling: Sampling | None, positions: Array) -> Array:
    """Logits BV -> tokens B: the likeliest, or one drawn with the row's key folded with its position."""
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if sampling is None:
        return likeliest
    keys = jax.vmap(jax.random.fold_in)(sampling.keys, positions)
    drawn = jax.vmap(jax.random.categorical)(keys, keep(logits, sampling)).astype(jnp.int32)
    return jnp.where(sampling.temperature > 0, drawn, likeliest)


def keep(logits: Array, sampling: Sampling) -> Array:
    """Logits BV over the temperature, -inf where top-k, then top-p (Holtzman et al., 2020) cut them off."""
    logits = logits / jnp.maximum(sampling.temperature, 1e-6)[:, None]
    falling = jnp.sort(logits, axis=-1, descending=True)
    V = logits.shape[-1]
    k = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, V), V)
    kth = jnp.take_along_axis(falling, k[:, None] - 1, axis=-1)
    falling = jnp.where(falling < kth, -jnp.inf, falling)
    p = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(p, axis=-1) - p  # the probability of all that is likelier; 0 for the likeliest
    least = jnp.min(jnp.where(before < sampling.top_p[:, None], falling, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < jnp.maximum(kth, least), -jnp.inf, logits)
