"""What a weight may be, and the one product that reads it."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike


def einsum(equation: str, x: Array, w: Array, dtype: DTypeLike | None = None) -> Array:
    """x times the weight w as the equation says, accumulated in float32, rounded to `dtype` or that of x.

    float32 stays float32 on every device: without the word, GPUs would round the factors to TF32 and
    TPUs to bfloat16.
    """
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(equation, x, w, precision=precision, preferred_element_type=dtype or x.dtype)
