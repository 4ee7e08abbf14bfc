"""Which tokens can be sampled: all others get the logit -inf. The settings of each row are data.

Order and formulas are those of transformers: temperature, top-h, top-k, top-p, min-p, typical, epsilon, eta.
"""

import jax
import jax.numpy as jnp
from jax import Array

from vipllava_jax.generation.processing import Processing
from vipllava_jax.generation.sampling import Sampling

TOP_H_TOKENS = 100  # top-h measures the entropy of this many tokens


def filter_logits(
    logits: Array, sampling: Sampling, processing: Processing | None = None, keep: int = 1
) -> Array:
    """Logits BV -> logits / temperature, -inf for tokens that cannot be sampled.

    At least the `keep` most likely tokens can be. Without `processing`, only the filters of Sampling apply.
    """
    logits = logits / jnp.maximum(sampling.temperature, 1e-6)[:, None]
    falling = jnp.sort(logits, axis=-1, descending=True)
    least = jnp.full_like(falling[:, :1], -jnp.inf)
    if processing is not None:
        least = least_top_h(falling, processing.top_h)
        falling = jnp.where(falling < least, -jnp.inf, falling)
    least = jnp.maximum(least, least_top_k_top_p_min_p(falling, sampling, keep))
    logits = jnp.where(logits < least, -jnp.inf, logits)
    if processing is None:
        return logits
    logits = keep_typical(logits, processing.typical_p, keep)
    logits = cut_off(logits, processing.epsilon_cutoff[:, None], keep)
    eta = processing.eta_cutoff[:, None]
    return cut_off(logits, jnp.minimum(eta, jnp.sqrt(eta) * jnp.exp(-entropy(logits))), keep)


def least_top_k_top_p_min_p(falling: Array, sampling: Sampling, keep: int) -> Array:
    """Falling logits BV -> the smallest that top-k, then top-p and then min-p keep, B1.

    Top-p is from Holtzman et al. (2020), min-p from Nguyen et al. (2024).
    """
    V = falling.shape[-1]
    k = jnp.where(sampling.top_k > 0, jnp.clip(sampling.top_k, min(keep, V), V), V)
    kth = jnp.take_along_axis(falling, k[:, None] - 1, axis=-1)
    falling = jnp.where(falling < kth, -jnp.inf, falling)
    p = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(p, axis=-1) - p  # the total probability of more likely tokens
    pth = jnp.min(jnp.where(before < sampling.top_p[:, None], falling, jnp.inf), axis=-1, keepdims=True)
    mth = falling[:, :1] + jnp.log(sampling.min_p[:, None])
    last = falling[:, min(keep, V) - 1, None]
    return jnp.maximum(kth, jnp.minimum(jnp.maximum(pth, mth), last))


def least_top_h(falling: Array, top_h: Array) -> Array:
    """Falling logits BV -> the smallest that top-h keeps, B1; -inf where top_h B is 0.

    It keeps the most likely tokens whose terms of the entropy add up to at most top_h of the entropy, both of
    the TOP_H_TOKENS most likely tokens (Potraghloo et al., 2025).
    """
    top = falling[:, :TOP_H_TOKENS]
    log_p = jax.nn.log_softmax(top, axis=-1)
    terms = jnp.where(jnp.isfinite(log_p), -jnp.exp(log_p) * log_p, 0)
    total = terms.sum(axis=-1, keepdims=True)
    kept = (jnp.cumsum(terms, axis=-1) <= top_h[:, None] * total).at[:, 0].set(True)
    least = jnp.min(jnp.where(kept, top, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(top_h[:, None] > 0, least, -jnp.inf)


def keep_typical(logits: Array, typical_p: Array, keep: int) -> Array:
    """Keeps the tokens whose surprise is closest to the entropy, of the total probability typical_p B.

    From Meister et al. (2022).
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    distance = jnp.abs(-log_p - entropy(logits))
    rising, p = jax.lax.sort((distance, jnp.exp(log_p)), num_keys=1)
    V = logits.shape[-1]
    last = jnp.minimum((jnp.cumsum(p, axis=-1) < typical_p[:, None]).sum(axis=-1, keepdims=True), V - 1)
    most = jnp.take_along_axis(rising, jnp.maximum(last, keep - 1), axis=-1)
    return jnp.where((distance > most) & (typical_p < 1)[:, None], -jnp.inf, logits)


def cut_off(logits: Array, least: Array, keep: int) -> Array:
    """Removes the tokens whose probability is below `least` B1, except the `keep` most likely."""
    last = jax.lax.top_k(logits, min(keep, logits.shape[-1]))[0][:, -1:]
    return jnp.where((jax.nn.softmax(logits, axis=-1) < least) & (logits < last), -jnp.inf, logits)


def entropy(logits: Array) -> Array:
    """Logits BV -> the entropy of their softmax, B1, in nats."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.where(jnp.isfinite(log_p), jnp.exp(log_p) * log_p, 0).sum(axis=-1, keepdims=True)
