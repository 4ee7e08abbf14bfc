"""Which tokens can be sampled: all others get the logit -inf. The settings of each row are data.

Order and formulas are those of transformers: temperature, top-h, top-k, top-p, min-p, typical, epsilon, eta.
Of tokens that are equally likely, all are kept or none.
"""

import jax
import jax.numpy as jnp
from jax import Array

from vipllava_jax.generation.logits.processing import Processing
from vipllava_jax.generation.logits.sampling import Sampling

LEAST_TEMPERATURE = 1e-6  # lower ones would overflow
TOP_H_TOKENS = 100  # top-h measures the entropy of this many tokens


def filter_logits(
    logits: Array, sampling: Sampling, processing: Processing | None = None, keep: int = 1
) -> Array:
    """Logits BV -> logits / temperature, -inf for tokens that cannot be sampled.

    All filters keep at least the `keep` most likely tokens, except top-h, which keeps at least one. Without
    `processing`, only the filters of Sampling apply.
    """
    keep = min(keep, logits.shape[-1])
    logits = logits / jnp.maximum(sampling.temperature, LEAST_TEMPERATURE)[:, None]
    descending = jnp.sort(logits, axis=-1, descending=True)
    if processing is None:
        return mask_below(logits, top_k_top_p_min_p_threshold(descending, sampling, keep))
    top_h = top_h_threshold(descending, processing.top_h)
    threshold = jnp.maximum(top_h, top_k_top_p_min_p_threshold(mask_below(descending, top_h), sampling, keep))
    logits = keep_typical(mask_below(logits, threshold), processing.typical_p, keep)
    logits = cut_off(logits, processing.epsilon_cutoff[:, None], keep)
    eta = processing.eta_cutoff[:, None]
    return cut_off(logits, jnp.minimum(eta, jnp.sqrt(eta) * jnp.exp(-entropy(logits))), keep)


def mask_below(logits: Array, threshold: Array) -> Array:
    """Logits BV -> the same with -inf for those below `threshold` B1."""
    return jnp.where(logits < threshold, -jnp.inf, logits)


def top_k_top_p_min_p_threshold(descending: Array, sampling: Sampling, keep: int) -> Array:
    """Descending logits BV -> the smallest that top-k, then top-p and then min-p keep, B1.

    Top-k is from Fan et al. (2018), top-p from Holtzman et al. (2020), min-p from Nguyen et al. (2024).
    """
    V = descending.shape[-1]
    k = jnp.where(sampling.top_k > 0, jnp.clip(sampling.top_k, keep, V), V)
    top_k = jnp.take_along_axis(descending, k[:, None] - 1, axis=-1)
    p = jax.nn.softmax(mask_below(descending, top_k), axis=-1)
    rest = jax.lax.cumsum(p, axis=1, reverse=True)  # the probability of a token and all less likely ones
    removed = jnp.where(sampling.top_p < 1, 1 - sampling.top_p, -jnp.inf)[:, None]  # 1 removes none
    top_p = jnp.min(jnp.where(rest > removed, descending, jnp.inf), axis=-1, keepdims=True)
    min_p = descending[:, :1] + jnp.log(sampling.min_p[:, None])
    return jnp.maximum(top_k, jnp.minimum(jnp.maximum(top_p, min_p), descending[:, keep - 1, None]))


def top_h_threshold(descending: Array, top_h: Array) -> Array:
    """Descending logits BV -> the smallest that top-h keeps, B1; -inf where top_h B is 0.

    It keeps the most likely tokens whose terms of the entropy add up to at most top_h of the entropy, both of
    the TOP_H_TOKENS most likely tokens (Potraghloo et al., 2025).
    """
    top = descending[:, :TOP_H_TOKENS]
    p, terms = entropy_terms(top)
    share = jnp.where(top_h < 1, top_h, jnp.inf)[:, None]  # 1 keeps all of them, whatever the rounding
    within = jnp.cumsum(terms, axis=-1) <= share * terms.sum(axis=-1, keepdims=True)
    kept = (within & (p > 0)).at[:, 0].set(True)
    least = jnp.min(jnp.where(kept, top, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(top_h[:, None] > 0, least, -jnp.inf)


def keep_typical(logits: Array, typical_p: Array, keep: int) -> Array:
    """Logits BV -> the same with -inf for all but the most typical tokens (Meister et al., 2022).

    These have a surprise -log p closest to the entropy, and a total probability of typical_p B.
    """
    surprise = -jax.nn.log_softmax(logits, axis=-1)
    distance = jnp.abs(surprise - entropy(logits))
    ascending, p = jax.lax.sort((distance, jnp.exp(-surprise)), num_keys=1)
    before = (jnp.cumsum(p, axis=-1) < typical_p[:, None]).sum(axis=-1, keepdims=True)
    last = jnp.clip(before, keep - 1, logits.shape[-1] - 1)
    most = jnp.take_along_axis(ascending, last, axis=-1)
    return jnp.where((distance > most) & (typical_p < 1)[:, None], -jnp.inf, logits)


def cut_off(logits: Array, threshold: Array, keep: int) -> Array:
    """Logits BV -> the same with -inf for probabilities below `threshold` B1, except the `keep` largest.

    This is epsilon sampling with a constant threshold, and eta sampling with one that falls as the entropy
    rises (Hewitt et al., 2022).
    """
    last = jax.lax.top_k(logits, keep)[0][:, -1:]
    return jnp.where((jax.nn.softmax(logits, axis=-1) < threshold) & (logits < last), -jnp.inf, logits)


def entropy(logits: Array) -> Array:
    """Logits BV -> the entropy of their softmax, B1, in nats."""
    return entropy_terms(logits)[1].sum(axis=-1, keepdims=True)


def entropy_terms(logits: Array) -> tuple[Array, Array]:
    """Logits BV -> the probabilities p of their softmax and -p·log p, which is 0 where p is."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    return p, jnp.where(p > 0, -p * log_p, 0)
