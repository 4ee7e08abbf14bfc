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

    At least the `keep` most likely tokens can be, but top-h keeps a single one if need be. Without
    `processing`, only the filters of Sampling apply.
    """
    keep = min(keep, logits.shape[-1])
    logits = logits / jnp.maximum(sampling.temperature, LEAST_TEMPERATURE)[:, None]
    falling = jnp.sort(logits, axis=-1, descending=True)
    if processing is None:
        return at_least(logits, least_top_k_top_p_min_p(falling, sampling, keep))
    least = least_top_h(falling, processing.top_h)
    least = jnp.maximum(least, least_top_k_top_p_min_p(at_least(falling, least), sampling, keep))
    logits = keep_typical(at_least(logits, least), processing.typical_p, keep)
    logits = cut_off(logits, processing.epsilon_cutoff[:, None], keep)
    eta = processing.eta_cutoff[:, None]
    return cut_off(logits, jnp.minimum(eta, jnp.sqrt(eta) * jnp.exp(-entropy(logits))), keep)


def at_least(logits: Array, least: Array) -> Array:
    """Logits BV -> the same with -inf for those below `least` B1."""
    return jnp.where(logits < least, -jnp.inf, logits)


def least_top_k_top_p_min_p(falling: Array, sampling: Sampling, keep: int) -> Array:
    """Falling logits BV -> the smallest that top-k, then top-p and then min-p keep, B1.

    Top-k is from Fan et al. (2018), top-p from Holtzman et al. (2020), min-p from Nguyen et al. (2024).
    """
    V = falling.shape[-1]
    k = jnp.where(sampling.top_k > 0, jnp.clip(sampling.top_k, keep, V), V)
    kth = jnp.take_along_axis(falling, k[:, None] - 1, axis=-1)
    p = jax.nn.softmax(at_least(falling, kth), axis=-1)
    rest = jax.lax.cumsum(p, axis=1, reverse=True)  # the probability of a token and all less likely ones
    removed = jnp.where(sampling.top_p < 1, 1 - sampling.top_p, -jnp.inf)[:, None]  # 1 removes none
    pth = jnp.min(jnp.where(rest > removed, falling, jnp.inf), axis=-1, keepdims=True)
    mth = falling[:, :1] + jnp.log(sampling.min_p[:, None])
    return jnp.maximum(kth, jnp.minimum(jnp.maximum(pth, mth), falling[:, keep - 1, None]))


def least_top_h(falling: Array, top_h: Array) -> Array:
    """Falling logits BV -> the smallest that top-h keeps, B1; -inf where top_h B is 0.

    It keeps the most likely tokens whose terms of the entropy add up to at most top_h of the entropy, both of
    the TOP_H_TOKENS most likely tokens (Potraghloo et al., 2025).
    """
    top = falling[:, :TOP_H_TOKENS]
    p, terms = entropy_terms(top)
    share = jnp.where(top_h < 1, top_h, jnp.inf)[:, None]  # 1 keeps all of them, whatever the rounding
    within = jnp.cumsum(terms, axis=-1) <= share * terms.sum(axis=-1, keepdims=True)
    kept = (within & (p > 0)).at[:, 0].set(True)
    least = jnp.min(jnp.where(kept, top, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(top_h[:, None] > 0, least, -jnp.inf)


def keep_typical(logits: Array, typical_p: Array, keep: int) -> Array:
    """Logits BV -> the same with -inf for tokens that are not typical (Meister et al., 2022).

    Typical are those whose surprise -log p is closest to the entropy, of the total probability typical_p B.
    """
    surprise = -jax.nn.log_softmax(logits, axis=-1)
    distance = jnp.abs(surprise - entropy(logits))
    rising, p = jax.lax.sort((distance, jnp.exp(-surprise)), num_keys=1)
    before = (jnp.cumsum(p, axis=-1) < typical_p[:, None]).sum(axis=-1, keepdims=True)
    last = jnp.clip(before, keep - 1, logits.shape[-1] - 1)
    most = jnp.take_along_axis(rising, last, axis=-1)
    return jnp.where((distance > most) & (typical_p < 1)[:, None], -jnp.inf, logits)


def cut_off(logits: Array, least: Array, keep: int) -> Array:
    """Logits BV -> -inf for tokens less likely than `least` B1, except the `keep` most likely.

    With a constant, this is the cut-off epsilon, and with one that falls as the entropy rises, eta (Hewitt et
    al., 2022).
    """
    last = jax.lax.top_k(logits, keep)[0][:, -1:]
    return jnp.where((jax.nn.softmax(logits, axis=-1) < least) & (logits < last), -jnp.inf, logits)


def entropy(logits: Array) -> Array:
    """Logits BV -> the entropy of their softmax, B1, in nats."""
    return entropy_terms(logits)[1].sum(axis=-1, keepdims=True)


def entropy_terms(logits: Array) -> tuple[Array, Array]:
    """Logits BV -> the probabilities p of their softmax and -p·log p, which is 0 where p is."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    return p, jnp.where(p > 0, -p * log_p, 0)
