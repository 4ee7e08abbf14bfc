"""Weights quantized to int8 or int4, and products that read the quantized values directly."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.typing import DTypeLike

from vipllava_jax.model.equations import precision, turned

LONG = 4096  # int8: with more inputs per channel than this, four values are read as one int32
WIDE = 8192  # for one row: with more channels than this, two halves of the channels are summed in parallel
FEW = 4  # int4: up to this many rows of x, `_sum` computes the product
GROUP = 128  # int4: values that share a scale; fewer if the inputs per channel are not a multiple of this


@struct.dataclass
class Quantized:
    """A weight as int8 values and one scale per output channel: values * scale, with the output axes first.

    The contracted axes come first in a weight, but last in its values, because a GPU reads that order
    fastest. `shape` and `size` are those of the weight; `dtype` is int8.
    """

    values: Array  # int8, the output axes, then the contracted axes
    scale: Array  # float32, the output axes

    @property
    def kept(self) -> int:
        """The number of output axes."""
        return self.scale.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.values.shape[self.kept :], *self.values.shape[: self.kept])

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def inputs(self) -> int:
        """The number of terms that a product adds per output channel."""
        return math.prod(self.shape[: -self.kept])

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.int8)

    def astype(self, dtype: DTypeLike) -> Array:
        """The dequantized weight, contracted axes first."""
        w = self.turned(jnp.float32)
        return jnp.moveaxis(w, range(self.kept, w.ndim), range(w.ndim - self.kept)).astype(dtype)

    def turned(self, dtype: DTypeLike) -> Array:
        """The dequantized weight, output axes first."""
        return self.values.astype(dtype) * self.scale[(...,) + (None,) * (self.values.ndim - self.kept)]

    def rearranged(self, f: Callable[..., Array], *others: 'Quantized') -> 'Quantized':
        """Applies f, which only joins or moves output axes, to weights that have a single contracted axis."""

        def moved(*xs: Array) -> Array:
            return jnp.moveaxis(f(*(jnp.moveaxis(x, -1, 0) for x in xs)), 0, -1)

        assert self.values.ndim == self.kept + 1, f'{self.shape}: sums over several axes'
        ws = (self, *others)
        values = moved(*(w.values for w in ws))
        scale = moved(*(w.scale.reshape(*w.values.shape[:-1], -1) for w in ws))
        return type(self)(values, scale.reshape(*values.shape[:-1], *self.scale.shape[self.kept :]))


@struct.dataclass
class Grouped(Quantized):
    """A weight as int4 values, eight per int32 word, and one scale per GROUP values of an output channel.

    Bits 4k to 4k + 3 of a word are value k, from -8 to 7, of eight consecutive inputs.
    """

    values: Array  # int32, the output axes, then the contracted axes, the last an eighth as long
    scale: Array  # bfloat16, the output axes, then the groups of the flattened contracted axes

    @property
    def kept(self) -> int:
        return self.scale.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        *summed, words = self.values.shape[self.kept :]
        return (*summed, 8 * words, *self.values.shape[: self.kept])

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.int4)

    def turned(self, dtype: DTypeLike) -> Array:
        nibbles = (self.values[..., None] << 28 - 4 * jnp.arange(8)) >> 28
        w = nibbles.reshape(*self.scale.shape, -1) * self.scale.astype(jnp.float32)[..., None]
        return w.reshape(*self.values.shape[:-1], -1).astype(dtype)


def quantize(w: Array, summed: int, kind: str = 'int8') -> Quantized:
    """Quantizes a weight, whose first `summed` axes are contracted, to int8 or int4.

    In int8, the largest magnitude of a channel becomes 127 or -127. In int4, as in ggml's Q4_0, the value of
    largest magnitude in a group becomes -8, whatever its sign. A weight whose last contracted axis is not a
    multiple of eight becomes int8 even if `kind` is 'int4'.
    """
    last = tuple(range(-summed, 0))
    turned = jnp.moveaxis(w.astype(jnp.float32), range(summed), last)
    if kind == 'int4' and turned.shape[-1] % 8 == 0:
        return _grouped(turned, w.ndim - summed)
    scale = jnp.max(jnp.abs(turned), axis=last, keepdims=True) / 127
    values = jnp.round(turned / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return Quantized(values, jnp.squeeze(scale, last))


def _grouped(turned: Array, kept: int) -> Grouped:
    size = math.gcd(GROUP, math.prod(turned.shape[kept:]))
    w = turned.reshape(*turned.shape[:kept], -1, size)
    most = jnp.take_along_axis(w, jnp.argmax(jnp.abs(w), axis=-1, keepdims=True), axis=-1)
    scale = (most / -8).astype(jnp.bfloat16)
    divisor = jnp.where(scale != 0, scale, 1).astype(jnp.float32)
    values = jnp.clip(jnp.round(w / divisor), -8, 7).astype(jnp.int32)
    nibbles = (values.reshape(*turned.shape[:-1], -1, 8) & 15) << 4 * jnp.arange(8)
    return Grouped(jnp.sum(nibbles, axis=-1, dtype=jnp.int32), scale[..., 0])


def stored(values: Any, scale: Any) -> Quantized:
    """Values and scale, as arrays or shapes -> the quantized weight: int4 if values are int32, else int8."""
    return (Grouped if values.dtype == jnp.int32 else Quantized)(values, scale)


def product(equation: str, x: Array, w: Quantized, dtype: jnp.dtype) -> Array:
    """The product of x and w by the equation, in `dtype`, accumulated in float32."""
    dot = functools.partial(_dot, turned(equation), dtype)
    if 0 < x.size <= (FEW if isinstance(w, Grouped) else 1) * w.inputs:
        return lax.platform_dependent(x, w, cuda=functools.partial(_sum, dtype), default=dot)
    return dot(x, w)


def _dot(equation: str, dtype: jnp.dtype, x: Array, w: Quantized) -> Array:
    """The product as a matrix multiplication; int8 weights are scaled after it, int4 weights before it."""
    dot = functools.partial(jnp.einsum, equation, precision=precision(x))
    if isinstance(w, Grouped):
        # The barriers keep XLA from dequantizing all layers in advance, which would take the memory of the
        # unquantized model.
        x, w = lax.optimization_barrier((x, w))
        return dot(x, lax.optimization_barrier(w.turned(x.dtype)), preferred_element_type=dtype)
    # Unscaled sums may overflow float16. They fit in bfloat16, which is faster to write than float32.
    wide = jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype
    return (dot(x, w.values.astype(x.dtype), preferred_element_type=wide) * w.scale).astype(dtype)


def _sum(dtype: jnp.dtype, x: Array, w: Quantized) -> Array:
    """The product for one or a few rows of x, as a reduction; a dot would pad the rows to tiles of 16."""
    channels = w.size // w.inputs
    rows = x.reshape(-1, w.inputs)
    rows = lax.optimization_barrier(rows).astype(jnp.float32)  # otherwise every sum would recompute x
    values, scale = w.values.reshape(channels, -1), w.scale.reshape(channels, -1)
    twice = len(rows) == 1 and channels > WIDE and channels % 2 == 0
    if isinstance(w, Grouped):
        y = _sums(_nibbles, rows, twice, values, scale)
    elif w.inputs > LONG and w.inputs % 4 == 0:
        y = _sums(_words, rows, False, values) * scale[:, 0]
    else:
        y = _sums(lambda row, values: values * row, rows, twice, values) * scale[:, 0]
    return y.astype(dtype).reshape(*x.shape[: x.ndim - (w.values.ndim - w.kept)], *w.values.shape[: w.kept])


def _sums(products: Callable[..., Array], rows: Array, twice: bool, *of: Array) -> Array:
    """Rows of x and the arrays `of`, which hold the channels -> the sums of their products, rows by channels.

    `products` maps one row and the arrays to the terms, which are added along axis 1. One kernel computes
    all sums, so that the arrays are read once. With `twice`, it works on two halves of the channels at the
    same time, which keeps more loads in flight.
    """
    middle = len(of[0]) // 2
    parts = [slice(middle), slice(middle, None)] if twice else [slice(None)]
    terms = [products(row, *(x[part] for x in of)) for row in rows for part in parts]
    zeros = [jnp.float32(0) for _ in terms]
    sums = lax.reduce(terms, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (1,))
    return jnp.concatenate(sums).reshape(len(rows), -1)


def _words(row: Array, values: Array) -> Array:
    """A row and int8 values -> their products, added per word: four values are read as one int32 word."""
    words = lax.bitcast_convert_type(values.reshape(len(values), -1, 4), jnp.int32)
    return sum(((words << 24 - 8 * i) >> 24) * row[i::4] for i in range(4))  # type: ignore[return-value]


def _nibbles(row: Array, words: Array, scale: Array) -> Array:
    """A row and int4 words -> their products, added per word of eight and multiplied by the group's scale."""
    products = sum(((words << 28 - 4 * i) >> 28) * row[i::8] for i in range(8))
    grouped = products.reshape(*scale.shape, -1) * scale[..., None]  # type: ignore[union-attr]
    return grouped.reshape(words.shape)
