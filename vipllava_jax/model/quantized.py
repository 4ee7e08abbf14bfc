"""Weights quantized to int8 or int4."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

GROUP = 128  # int4: values that share a scale; fewer if the inputs per channel are not a multiple of this


@struct.dataclass
class Quantized(ABC):
    """A weight as integer values and the scales to multiply them by, both with the output axes first.

    The contracted axes come first in a weight, but last in its values, because a GPU reads that order
    fastest. `shape` and `size` are those of the weight; `dtype` is int8 or int4.
    """

    values: Array
    scale: Array

    @property
    @abstractmethod
    def output_axes(self) -> int:
        """The number of output axes."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight, contracted axes first."""

    @property
    @abstractmethod
    def dtype(self) -> Any:
        """The dtype of a value."""

    @abstractmethod
    def output_axes_first(self, dtype: DTypeLike) -> Array:
        """The dequantized weight, output axes first."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def fan_in(self) -> int:
        """The number of terms that a product adds per output channel."""
        return math.prod(self.shape[: -self.output_axes])

    def astype(self, dtype: DTypeLike) -> Array:
        """The dequantized weight, contracted axes first."""
        w, n = self.output_axes_first(jnp.float32), self.output_axes
        return jnp.moveaxis(w, range(n, w.ndim), range(w.ndim - n)).astype(dtype)

    def map_output_axes(self, f: Callable[..., Array], *others: 'Quantized') -> 'Quantized':
        """Applies f, which only joins or moves output axes, to weights that have a single contracted axis."""

        def contracted_last(*xs: Array) -> Array:
            return jnp.moveaxis(f(*(jnp.moveaxis(x, -1, 0) for x in xs)), 0, -1)

        n = self.output_axes
        assert self.values.ndim == n + 1, f'{self.shape}: has several contracted axes'
        ws = (self, *others)
        values = contracted_last(*(w.values for w in ws))
        scale = contracted_last(*(w.scale.reshape(*w.values.shape[:-1], -1) for w in ws))
        return type(self)(values, scale.reshape(*values.shape[:-1], *self.scale.shape[n:]))


@struct.dataclass
class Int8(Quantized):
    """A weight as int8 values and one scale per output channel: values * scale."""

    values: Array  # int8, the output axes, then the contracted axes
    scale: Array  # float32, the output axes

    @property
    def output_axes(self) -> int:
        return self.scale.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.values.shape[self.output_axes :], *self.values.shape[: self.output_axes])

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.int8)

    def output_axes_first(self, dtype: DTypeLike) -> Array:
        contracted = self.values.ndim - self.output_axes
        return self.values.astype(dtype) * self.scale[(...,) + (None,) * contracted]


@struct.dataclass
class Int4(Quantized):
    """A weight as int4 values, eight per int32 word, and one scale per GROUP values of an output channel.

    Bits 4k to 4k + 3 of a word are value k, from -8 to 7, of eight consecutive inputs.
    """

    values: Array  # int32, the output axes, then the contracted axes, the last an eighth as long
    scale: Array  # bfloat16, the output axes, then the groups of the flattened contracted axes

    @property
    def output_axes(self) -> int:
        return self.scale.ndim - 1

    @property
    def shape(self) -> tuple[int, ...]:
        *contracted, words = self.values.shape[self.output_axes :]
        return (*contracted, 8 * words, *self.values.shape[: self.output_axes])

    @property
    def dtype(self) -> Any:
        return jnp.dtype(jnp.int4)

    @property
    def group(self) -> int:
        """The number of values that share a scale."""
        return self.fan_in // self.scale.shape[-1]

    def with_group(self, group: int) -> 'Int4':
        """The same weight with smaller groups, whose size divides that of the present ones."""
        return Int4(self.values, jnp.repeat(self.scale, self.group // group, axis=-1))

    def with_largest_group(self) -> 'Int4':
        """The inverse of `with_group`: the same weight with the groups of `quantize`."""
        count = math.gcd(GROUP, self.fan_in) // self.group
        return self if count == 1 else Int4(self.values, self.scale[..., ::count])

    def output_axes_first(self, dtype: DTypeLike) -> Array:
        nibbles = (self.values[..., None] << 28 - 4 * jnp.arange(8)) >> 28
        w = nibbles.reshape(*self.scale.shape, -1) * self.scale.astype(jnp.float32)[..., None]
        return w.reshape(*self.values.shape[:-1], -1).astype(dtype)


def quantize(w: Array, contracted: int, dtype: str = 'int8', group: int | None = None) -> Quantized:
    """Quantizes a weight, whose first `contracted` axes are contracted, to int8 or int4.

    In int8, the largest magnitude of a channel becomes 127 or -127. In int4, as in ggml's Q4_0, the value of
    largest magnitude in a group becomes -8, whatever its sign. A weight whose last contracted axis is not a
    multiple of eight becomes int8 even if `dtype` is 'int4'. With a smaller `group`, an int4 weight is the
    same, but each scale is repeated for parts of `group` values, which may be on different devices.
    """
    last = tuple(range(-contracted, 0))
    w = jnp.moveaxis(w.astype(jnp.float32), range(contracted), last)
    if dtype == 'int4' and w.shape[-1] % 8 == 0:
        return _quantize_int4(w, w.ndim - contracted, group)
    scale = jnp.max(jnp.abs(w), axis=last, keepdims=True) / 127
    values = jnp.round(w / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
    return Int8(values, jnp.squeeze(scale, last))


def _quantize_int4(w: Array, output_axes: int, part: int | None) -> Int4:
    """Quantizes a weight whose output axes come first; `part` values repeat the scale of their group."""
    outputs = w.shape[:output_axes]
    group = math.gcd(GROUP, math.prod(w.shape[output_axes:]))
    part = part or group
    parts = w.reshape(*outputs, -1, part)
    largest = _largest(parts)
    if part < group:
        count = group // part  # of parts with the same scale
        largest = jnp.repeat(_largest(largest.reshape(*outputs, -1, count)), count, axis=-2)
    scale = (largest / -8).astype(jnp.bfloat16)
    divisor = jnp.where(scale != 0, scale, 1).astype(jnp.float32)
    values = jnp.clip(jnp.round(parts / divisor), -8, 7).astype(jnp.int32)
    nibbles = (values.reshape(*w.shape[:-1], -1, 8) & 15) << 4 * jnp.arange(8)
    return Int4(jnp.sum(nibbles, axis=-1, dtype=jnp.int32), scale[..., 0])


def _largest(groups: Array) -> Array:
    """The value of largest magnitude along the last axis, the first of equal ones; keeps the axis."""
    index = jnp.argmax(jnp.abs(groups), axis=-1, keepdims=True)
    return jnp.take_along_axis(groups, index, axis=-1)


def from_values_and_scale(values: Any, scale: Any) -> Quantized:
    """The quantized weight of two arrays or their shapes: Int4 if the values are int32, otherwise Int8."""
    return (Int4 if values.dtype == jnp.int32 else Int8)(values, scale)
