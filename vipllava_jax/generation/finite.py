"""Why a model's logits are not numbers, as far as that can be found out."""

import jax
import jax.numpy as jnp
import numpy as np

from vipllava_jax.inputs.processor import Batch
from vipllava_jax.model.vipllava import Params

NAMED = 3  # weights that are named; more of them tell no more


def explain(params: Params, batch: Batch) -> str:
    """The message for logits that hold NaN or infinity; all weights are read for it."""
    told = "the model's logits are not finite (NaN or infinity)"
    halves = any(x.dtype == jnp.float16 for x in jax.tree.leaves(params))
    advice = 'numbers above 65504 are infinite in float16: try --dtype bfloat16 or float32' if halves else ''
    if odd := not_finite(params):
        more = f' and {len(odd) - NAMED} more' if len(odd) > NAMED else ''
        verb = 'hold' if len(odd) > 1 else 'holds'
        reason = f'{", ".join(odd[:NAMED])}{more} {verb} NaN or infinity'
        advice = advice or 'get a whole copy of the weights, or convert them again'
    elif not np.isfinite(batch.images).all():
        reason, advice = 'the pictures hold NaN or infinity', 'give pictures whose pixels are numbers'
    else:
        reason = 'all weights are finite, but a result became too large'
        advice = advice or 'try --dtype float32, or another copy of the weights'
    return f'{told}: {reason}; {advice}'


def not_finite(params: Params) -> list[str]:
    """The paths of the weights that hold NaN or infinity."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return [
        jax.tree_util.keystr(path, simple=True, separator='/')
        for path, x in leaves
        if jnp.issubdtype(x.dtype, jnp.inexact) and not jnp.isfinite(x).all()
    ]
