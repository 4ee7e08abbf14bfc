"""What a weight may be, an array or one in int8, either with an adapter, and the product that reads it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.typing import DTypeLike

LONG = 4096  # a sum over more than this is read four values at a time


@struct.dataclass
class Quantized:
    """A weight as int8 and one scale an output channel; values * scale is the weight, its axes turned.

    The axes that a product sums over come first in a weight and last in its values, where a GPU reads them
    fastest. Its shape and size are the weight's, its dtype is int8.
    """

    values: Array  # int8, the kept axes, then the summed ones
    scale: Array  # float32, the kept axes

    @property
    def shape(self) -> tuple[int, ...]:
        kept = self.scale.ndim
        return (*self.values.shape[kept:], *self.values.shape[:kept])

    @property
    def size(self) -> int:
        return self.values.size

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def astype(self, dtype: DTypeLike) -> Array:
        """The weight that this stands for."""
        kept = self.scale.ndim
        w = self.values * self.scale[(...,) + (None,) * (self.values.ndim - kept)]
        return jnp.moveaxis(w, range(kept, w.ndim), range(w.ndim - kept)).astype(dtype)


@struct.dataclass
class LoRA:
    """A weight with a low-rank adapter beside it (Hu et al., 2021): base + scale * a b.

    With a key, that of a training step, the adapter sees x with a fraction `rate` of its values dropped and
    the others as much larger. Shape, size and dtype are the base's.
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


def quantize(w: Array, summed: int) -> Quantized:
    """A weight whose first `summed` axes are summed over -> int8, where 127 is the largest of a channel."""
    last = tuple(range(-summed, 0))
    turned = jnp.moveaxis(w.astype(jnp.float32), range(summed), last)
    scale = jnp.max(jnp.abs(turned), axis=last, keepdims=True) / 127
    values = jnp.round(turned / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return Quantized(values, jnp.squeeze(scale, last))


def rearrange(f: Callable[..., Array], *ws: Any) -> Any:
    """f of weights that sum over their first axis and whose kept axes alone it moves, quantised ones too."""
    if not isinstance(ws[0], Quantized):
        return f(*ws)
    values = f(*(jnp.moveaxis(w.values, -1, 0) for w in ws))
    return Quantized(jnp.moveaxis(values, 0, -1), f(*(w.scale[None] for w in ws))[0])


def einsum(equation: str, x: Array, w: Weight, dtype: DTypeLike | None = None) -> Array:
    """x times the weight w as the equation says, accumulated in float32, rounded to `dtype` or that of x.

    float32 stays float32 on every device: without the word, GPUs would round the factors to TF32 and
    TPUs to bfloat16.
    """
    wanted = jnp.dtype(dtype or x.dtype)
    if isinstance(w, LoRA):
        return einsum(equation, x, w.base, wanted) + _adapted(equation, x, w, wanted)
    if not isinstance(w, Quantized):
        return jnp.einsum(equation, x, w, precision=_precision(x), preferred_element_type=wanted)
    dot = functools.partial(_dot, equation, wanted)
    if x.size * w.scale.size == w.size:
        return lax.platform_dependent(x, w, cuda=functools.partial(_sum, wanted), default=dot)
    return dot(x, w)


def _dot(equation: str, wanted: jnp.dtype, x: Array, w: Quantized) -> Array:
    # Before the scale a sum may be too large for float16; bfloat16 holds it, and is quicker written out.
    wide = jnp.float32 if wanted == jnp.float16 else wanted
    values = w.values.astype(x.dtype)
    y = jnp.einsum(_turned(equation), x, values, precision=_precision(x), preferred_element_type=wide)
    return (y * w.scale).astype(wanted)


def _sum(wanted: jnp.dtype, x: Array, w: Quantized) -> Array:
    """The product of a single row: where a dot would fill its tiles up to 16, this reads and adds."""
    row = lax.optimization_barrier(x.reshape(-1)).astype(jnp.float32)  # or each sum would compute x anew
    values = w.values.reshape(w.scale.size, -1)
    if row.size > LONG and row.size % 4 == 0:
        words = lax.bitcast_convert_type(values.reshape(w.scale.size, -1, 4), jnp.int32)
        bytes_ = ((words << left) >> 24 for left in (24, 16, 8, 0))
        products = sum(part * row[i::4] for i, part in enumerate(bytes_))
    else:
        products = values * row
    y = jnp.sum(products, axis=1) * w.scale.reshape(-1)
    return y.astype(wanted).reshape(*x.shape[: x.ndim - (w.values.ndim - w.scale.ndim)], *w.scale.shape)


def _precision(x: Array) -> lax.Precision | None:
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def _adapted(equation: str, x: Array, w: LoRA, dtype: DTypeLike) -> Array:
    """What the adapter of a weight adds to its product with x; the pair is read in the type of x."""
    if w.key is not None and w.rate:
        x = jnp.where(jax.random.bernoulli(w.key, 1 - w.rate, x.shape), x / (1 - w.rate), 0)
    down, up = _halves(equation)
    y = einsum(down, x, w.a.astype(x.dtype))
    return einsum(up, y * w.scale, w.b.astype(x.dtype), dtype)


def _halves(equation: str) -> tuple[str, str]:
    """The equations of an adapter's two products: 'BTNH,NHD->BTD' -> 'BTNH,NHR->BTR', 'BTR,RD->BTD'."""
    x, kept, summed, out = _axes(equation)
    between = ''.join(a for a in x if a in out) + 'R'
    return f'{x},{summed}R->{between}', f'{between},R{kept}->{out}'


def _turned(equation: str) -> str:
    """The equation for a weight's values: 'BTNH,NHD->BTD' -> 'BTNH,DNH->BTD'."""
    x, kept, summed, out = _axes(equation)
    assert out.endswith(kept), f'{equation}: the axes that a quantised weight keeps must end the result'
    return f'{x},{kept}{summed}->{out}'


def _axes(equation: str) -> tuple[str, str, str, str]:
    """The axes of x, those that the weight keeps and those it sums over, and the result's."""
    factors, out = equation.split('->')
    x, w = factors.split(',')
    return x, ''.join(a for a in w if a in out), ''.join(a for a in w if a not in out), out
