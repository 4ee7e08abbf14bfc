"""The types of a weight (an array, a quantized weight, or either with LoRA) and the products with them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.typing import DTypeLike

from vipllava_jax.model.equations import halves, precision
from vipllava_jax.model.quantized import Quantized, product


@struct.dataclass
class LoRA:
    """A weight with a low-rank adapter (Hu et al., 2021): base + scale * a b.

    If `key` is set, as in a training step, dropout with probability `rate` is applied to the input of the
    adapter. `shape`, `size` and `dtype` are those of the base.
    """

    base: Array | Quantized
    a: Array  # the contracted axes, then R
    b: Array  # R, then the output axes
    scale: float = struct.field(pytree_node=False)  # alpha / R
    rate: float = struct.field(pytree_node=False, default=0.0)
    key: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def size(self) -> int:
        return self.base.size

    @property
    def dtype(self) -> Any:
        return self.base.dtype

    def astype(self, dtype: DTypeLike) -> Array:
        """The merged weight, computed in float32 and then rounded to `dtype`."""
        a, b = self.a.astype(jnp.float32), self.b.astype(jnp.float32)
        low = jnp.tensordot(a, b, 1, precision=lax.Precision.HIGHEST)
        return (self.base.astype(jnp.float32) + self.scale * low).astype(dtype)


Weight = Array | Quantized | LoRA


def rearrange(f: Callable[..., Array], *ws: Any) -> Any:
    """Applies f, which only joins or moves output axes, to weights whose only contracted axis is axis 0."""
    return ws[0].rearranged(f, *ws[1:]) if isinstance(ws[0], Quantized) else f(*ws)


def einsum(equation: str, x: Array, w: Weight, dtype: DTypeLike | None = None) -> Array:
    """The product of x and the weight w by the equation, in `dtype` (default: that of x).

    Products are accumulated in float32. float32 inputs are not rounded to TF32 or bfloat16 on any device.
    """
    wanted = jnp.dtype(dtype or x.dtype)
    if isinstance(w, LoRA):
        return einsum(equation, x, w.base, wanted) + _adapted(equation, x, w, wanted)
    if isinstance(w, Quantized):
        return product(equation, x, w, wanted)
    return jnp.einsum(equation, x, w, precision=precision(x), preferred_element_type=wanted)


def _adapted(equation: str, x: Array, w: LoRA, dtype: DTypeLike) -> Array:
    """The term that LoRA adds to the product of x and w; its two matrices are cast to the dtype of x."""
    if w.key is not None and w.rate:
        x = dropout(x, w.rate, w.key)
    down, up = halves(equation)
    y = einsum(down, x, w.a.astype(x.dtype))
    return einsum(up, y * w.scale, w.b.astype(x.dtype), dtype)


def dropout(x: Array, rate: float, key: Array) -> Array:
    """Dropout (Srivastava et al., 2014): sets a fraction `rate` of x to 0 and scales up the other values.

    The rate is rounded to a multiple of 1/256, from 1/256 to 255/256, because one random byte decides for
    each value; a 32-bit random word provides four.
    """
    dropped = min(max(round(256 * rate), 1), 255)
    words = jax.random.bits(key, (-(-x.size // 4),), jnp.uint32)
    words = lax.optimization_barrier(words)  # otherwise a GPU would compute each word four times
    kept = lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x.size].reshape(x.shape) >= dropped
    return jnp.where(kept, x / (1 - dropped / 256), 0)
