"""Finds NaN and infinity in weights, and explains logits that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np

from vipllava_jax.inputs.batch import Batch
from vipllava_jax.messages import listed
from vipllava_jax.model.vipllava import Params

MAX_NAMES = 3  # the maximum number of weights that a message names


def explain(params: Params, batch: Batch) -> str:
    """The error message for logits that hold NaN or infinity; checks weights and images for the cause."""
    has_float16 = any(x.dtype == jnp.float16 for x in jax.tree.leaves(params))
    advice = (
        'numbers above 65504 are infinite in float16: try --dtype bfloat16 or float32' if has_float16 else ''
    )
    if names := describe_not_finite(params):
        reason = names
        advice = advice or 'get a complete copy of the weights, or convert them again'
    elif not np.isfinite(batch.images).all():
        reason, advice = 'the images hold NaN or infinity', 'pass images of finite numbers'
    else:
        reason = 'all weights are finite, but a result overflowed'
        advice = advice or 'try --dtype float32, or another copy of the weights'
    return f"the model's logits are not finite (NaN or infinity): {reason}; {advice}"


def describe_not_finite(params: Params) -> str:
    """'a/w, b/w hold NaN or infinity', for a message; '' if all weights are finite."""
    names = not_finite(params)
    verb = 'hold' if len(names) > 1 else 'holds'
    return f'{listed(names, MAX_NAMES)} {verb} NaN or infinity' if names else ''


def not_finite(params: Params) -> list[str]:
    """The paths of the weights that hold NaN or infinity."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [
        jax.tree_util.keystr(path, simple=True, separator='/')
        for path, x in leaves
        if jnp.issubdtype(x.dtype, jnp.inexact) and not jnp.isfinite(x).all()
    ]
