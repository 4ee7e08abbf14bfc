"""Weights in eight or four bits, and the products that read them as they are stored."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.typing import DTypeLike

from vipllava_jax.model.equations import precision, turned

LONG = 4096  # a sum over more than this reads four values in int8 at a time
WIDE = 8192  # of more channels than this two are summed at a time
FEW = 4  # rows in int4 that are summed as one is
GROUP = 128  # values in int4 that share a scale, or fewer where a channel's number is no multiple


@struct.dataclass
class Quantized:
    """A weight as int8 and one scale an output channel; values * scale is the weight, its axes turned.

    The axes that a product sums over come first in a weight and last in its values, where a GPU reads them
    fastest. Shape and size are the weight's, the dtype is int8.
    """

    values: Array  # int8, the kept axes, then the summed ones
    scale: Array  # float32, the kept axes

    @property
    def kept(self) -> int:
        """How many axes a product keeps."""
        return self.scale.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.values.shape[self.kept :], *self.values.shape[: self.kept])

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def inputs(self) -> int:
        """How many values of x a channel is the sum of."""
        return math.prod(self.shape[: -self.kept])

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.int8)

    def astype(self, dtype: DTypeLike) -> Array:
        """The weight that this stands for."""
        w = self.turned(jnp.float32)
        return jnp.moveaxis(w, range(self.kept, w.ndim), range(w.ndim - self.kept)).astype(dtype)

    def turned(self, dtype: DTypeLike) -> Array:
        """The same, the kept axes first."""
        return self.values.astype(dtype) * self.scale[(...,) + (None,) * (self.values.ndim - self.kept)]

    def rearranged(self, f: Callable[..., Array], *others: 'Quantized') -> 'Quantized':
        """f of this and other weights that sum over one axis; it moves their kept axes alone."""

        def moved(*xs: Array) -> Array:
            return jnp.moveaxis(f(*(jnp.moveaxis(x, -1, 0) for x in xs)), 0, -1)

        assert self.values.ndim == self.kept + 1, f'{self.shape}: sums over several axes'
        ws = (self, *others)
        values = moved(*(w.values for w in ws))
        scale = moved(*(w.scale.reshape(*w.values.shape[:-1], -1) for w in ws))
        return type(self)(values, scale.reshape(*values.shape[:-1], *self.scale.shape[self.kept :]))


@struct.dataclass
class Grouped(Quantized):
    """A weight as int4, eight values a word, and a scale for every GROUP values of an output channel.

    Value k of a word, -8 to 7, is its bits 4k to 4k + 3, for the k-th of eight inputs that follow each other.
    """

    values: Array  # int32, the kept axes, then the summed ones, the last of these an eighth as long
    scale: Array  # bfloat16, the kept axes, then the groups of the summed ones laid end to end

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
    """A weight whose first `summed` axes are summed over -> int8 or int4.

    In int8, 127 is the largest of a channel. In int4, -8 is the largest of a group, whatever its sign, as in
    ggml's Q4_0; a weight whose last summed axis is no multiple of eight remains in int8.
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
    """The weight that two arrays, or their shapes, stand for."""
    return (Grouped if values.dtype == jnp.int32 else Quantized)(values, scale)


def product(equation: str, x: Array, w: Quantized, dtype: jnp.dtype) -> Array:
    """x times the weight w as the equation says, accumulated in float32."""
    dot = functools.partial(_dot, turned(equation), dtype)
    if 0 < x.size <= (FEW if isinstance(w, Grouped) else 1) * w.inputs:
        return lax.platform_dependent(x, w, cuda=functools.partial(_sum, dtype), default=dot)
    return dot(x, w)


def _dot(equation: str, dtype: jnp.dtype, x: Array, w: Quantized) -> Array:
    """The product of many rows: the scale comes after the sum where it may."""
    dot = functools.partial(jnp.einsum, equation, precision=precision(x))
    if isinstance(w, Grouped):
        # made where it is read and not before: those of all layers at once would be the whole model
        x, w = lax.optimization_barrier((x, w))
        return dot(x, lax.optimization_barrier(w.turned(x.dtype)), preferred_element_type=dtype)
    # Before the scale a sum may be too large for float16; bfloat16 holds it, and is quicker written out.
    wide = jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype
    return (dot(x, w.values.astype(x.dtype), preferred_element_type=wide) * w.scale).astype(dtype)


def _sum(dtype: jnp.dtype, x: Array, w: Quantized) -> Array:
    """The product of a row or a few: where a dot would fill its tiles up to 16, this reads and adds."""
    channels = w.size // w.inputs
    rows = x.reshape(-1, w.inputs)
    rows = lax.optimization_barrier(rows).astype(jnp.float32)  # or each sum would compute x anew
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
    """The sums, rows by channels, of what `products` makes of each row and of what channels hold.

    They come from one kernel, which reads that once. Two halves of the channels, where `twice` says so, keep
    more loads under way in it.
    """
    middle = len(of[0]) // 2
    parts = [slice(middle), slice(middle, None)] if twice else [slice(None)]
    terms = [products(row, *(x[part] for x in of)) for row in rows for part in parts]
    zeros = [jnp.float32(0) for _ in terms]
    sums = lax.reduce(terms, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (1,))
    return jnp.concatenate(sums).reshape(len(rows), -1)


def _words(row: Array, values: Array) -> Array:
    """Four values to a word."""
    words = lax.bitcast_convert_type(values.reshape(len(values), -1, 4), jnp.int32)
    return sum(((words << 24 - 8 * i) >> 24) * row[i::4] for i in range(4))  # type: ignore[return-value]


def _nibbles(row: Array, words: Array, scale: Array) -> Array:
    """Eight values to a word, each times its group's scale."""
    products = sum(((words << 28 - 4 * i) >> 28) * row[i::8] for i in range(8))
    grouped = products.reshape(*scale.shape, -1) * scale[..., None]  # type: ignore[union-attr]
    return grouped.reshape(words.shape)
