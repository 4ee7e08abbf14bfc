"""What a weight may be, an array or a quantised one, either with an adapter, and what reads it."""

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
    """A weight with a low-rank adapter beside it (Hu et al., 2021): base + scale * a b.

    With a key, that of a training step, the adapter sees x with a fraction `rate` of its values dropped.
    Shape, size and dtype are the base's.
    """

    base: Array | Quantized
    a: Array  # the summed axes, R
    b: Array  # R, the kept axes
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
        """The weight that this stands for, rounded once."""
        a, b = self.a.astype(jnp.float32), self.b.astype(jnp.float32)
        low = jnp.tensordot(a, b, 1, precision=lax.Precision.HIGHEST)
        return (self.base.astype(jnp.float32) + self.scale * low).astype(dtype)


Weight = Array | Quantized | LoRA


def rearrange(f: Callable[..., Array], *ws: Any) -> Any:
    """f of weights that sum over their first axis and whose kept axes alone it moves, quantised ones too."""
    return ws[0].rearranged(f, *ws[1:]) if isinstance(ws[0], Quantized) else f(*ws)


def einsum(equation: str, x: Array, w: Weight, dtype: DTypeLike | None = None) -> Array:
    """x times the weight w as the equation says, accumulated in float32, rounded to `dtype` or that of x.

    float32 stays float32 on every device: without the word, GPUs would round the factors to TF32 and
    TPUs to bfloat16.
    """
    wanted = jnp.dtype(dtype or x.dtype)
    if isinstance(w, LoRA):
        return einsum(equation, x, w.base, wanted) + _adapted(equation, x, w, wanted)
    if isinstance(w, Quantized):
        return product(equation, x, w, wanted)
    return jnp.einsum(equation, x, w, precision=precision(x), preferred_element_type=wanted)


def _adapted(equation: str, x: Array, w: LoRA, dtype: DTypeLike) -> Array:
    """What the adapter of a weight adds to its product with x; the pair is read in the type of x."""
    if w.key is not None and w.rate:
        x = dropout(x, w.rate, w.key)
    down, up = halves(equation)
    y = einsum(down, x, w.a.astype(x.dtype))
    return einsum(up, y * w.scale, w.b.astype(x.dtype), dtype)


def dropout(x: Array, rate: float, key: Array) -> Array:
    """x with a fraction `rate` of its values zero and the others as much larger (Srivastava et al., 2014).

    The fraction is rounded to 1/256, and at least that and at most 255/256: a byte decides for each value,
    and one hash of the key makes four.
    """
    dropped = min(max(round(256 * rate), 1), 255)
    words = jax.random.bits(key, (-(-x.size // 4),), jnp.uint32)
    words = lax.optimization_barrier(words)  # or a GPU would hash again for each of the four
    kept = lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x.size].reshape(x.shape) >= dropped
    return jnp.where(kept, x / (1 - dropped / 256), 0)
