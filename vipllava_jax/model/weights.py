"""What a weight's axes are, the types of a weight (plain, quantized or with LoRA), and products with them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax
from jax.typing import DTypeLike

from vipllava_jax.model.equations import lora_equations, precision
from vipllava_jax.model.products import product
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.sharding import SMALL, mesh_of, per_device


@dataclass(frozen=True)
class WeightAxes:
    """What the module that creates a weight states about its axes, in the letters of `vipllava_jax.config`.

    `letters` of the weight of an attention output are 'NHD', of which its product contracts 'NH'. The
    contracted letters come first. They are '' for what is not the weight of a product: embeddings, norms,
    biases.
    """

    letters: str
    contracted: str = ''
    decays: bool = True  # with weight decay in training: False for norms and biases
    quantizable: bool = False  # whether int8 and int4 quantize it: the products of the decoder
    indexed: str = ''  # axes that are indexed by ids, as the V of an embedding table: no mesh divides them

    @property
    def divisible(self) -> str:
        """The letters by which a mesh divides the weight: `letters`, with a dot for an indexed axis."""
        return ''.join('.' if letter in self.indexed else letter for letter in self.letters)

    @property
    def output(self) -> str:
        """The letters of the axes that the product keeps."""
        return self.letters[len(self.contracted) :]

    @property
    def quantized_axes(self) -> int:
        """How many leading axes the quantized weight contracts; 0 if the weight is not quantizable."""
        return len(self.contracted) if self.quantizable else 0


@dataclass(frozen=True)
class WeightSpec(WeightAxes):
    """The axes of a weight, and their sizes."""

    shape: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def fan_in(self) -> int:
        """The number of terms that a product adds per output channel; 1 if there is no product."""
        return math.prod(self.shape[: len(self.contracted)])


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
        update = jnp.tensordot(a, b, 1, precision=lax.Precision.HIGHEST)
        return (self.base.astype(jnp.float32) + self.scale * update).astype(dtype)


Weight = Array | Quantized | LoRA


def map_output_axes(f: Callable[..., Array], *ws: Any) -> Any:
    """Applies f, which only joins or moves output axes, to weights whose only contracted axis is axis 0."""
    return ws[0].map_output_axes(f, *ws[1:]) if isinstance(ws[0], Quantized) else f(*ws)


def einsum(equation: str, x: Array, w: Weight, dtype: DTypeLike | None = None) -> Array:
    """The product of x and the weight w by the equation, in `dtype` (default: that of x).

    Products are accumulated in float32. float32 inputs are not rounded to TF32 or bfloat16 on any device.
    """
    dtype = jnp.dtype(dtype or x.dtype)
    if isinstance(w, LoRA):
        return einsum(equation, x, w.base, dtype) + _lora_term(equation, x, w, dtype)
    if isinstance(w, Quantized):
        return product(equation, x, w, dtype)
    dot = partial(jnp.einsum, equation, precision=precision(x))
    # XLA divides large products by itself, and overlaps their sums over the devices with other work.
    if mesh_of(x, w) is None or _result_size(equation, x, w) * dtype.itemsize > SMALL:
        return dot(x, w, preferred_element_type=dtype)

    def part(x: Array, w: Array) -> Array:
        # A GPU would store the terms of a small bfloat16 sum, instead of adding them as they are computed.
        return dot(x, w, preferred_element_type=jnp.float32).astype(dtype)

    return per_device(part, equation)(x, w)


def _result_size(equation: str, *factors: Array) -> int:
    """The number of elements of a product."""
    letters, result = equation.split('->')
    shapes = zip(letters.split(','), factors, strict=True)
    sizes = {a: size for axes, x in shapes for a, size in zip(axes, x.shape, strict=True)}
    return math.prod(sizes[a] for a in result)


def _lora_term(equation: str, x: Array, w: LoRA, dtype: DTypeLike) -> Array:
    """The term that LoRA adds to the product of x and w; its two matrices are cast to the dtype of x."""
    if w.key is not None and w.rate:
        x = dropout(x, w.rate, w.key)
    down, up = lora_equations(equation)
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
