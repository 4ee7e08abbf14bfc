"""Layers shared by the vision tower and the decoder: Linear, norms, rotary embeddings."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from vipllava_jax.model.equations import axes
from vipllava_jax.model.weights import WeightAxes, einsum
from vipllava_jax.sharding import pin


@struct.dataclass
class WithAxes(nn.meta.AxisMetadata[Array]):
    """A new parameter in the box in which Flax's `init` returns it, with the description of its axes."""

    value: Any
    axes: WeightAxes = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> Any:
        return WithAxes(val, self.axes)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
        raise NotImplementedError('layers are unrolled: no parameter has an axis of layers')

    remove_axis = add_axis


def param(
    module: nn.Module,
    name: str,
    init: Callable[..., Array],
    axes: WeightAxes,
    sizes: Mapping[str, int],
    dtype: DTypeLike,
) -> Any:
    """Creates a parameter at init; afterwards returns the stored leaf, which may be quantized or have LoRA.

    Its shape is that of the letters of `axes`, in `sizes`. `init` is an initializer of Flax, and `dtype` the
    dtype of the new parameter. `Module.init` returns it in a box, `WithAxes`.

    Raises Flax's ScopeParamNotFoundError if the leaf is missing and ScopeParamShapeError if it has another
    shape; both name the path of the module.
    """
    shape = tuple(sizes[a] for a in axes.letters)
    if module.is_initializing():
        return module.param(name, lambda key: WithAxes(init(key, shape, dtype), axes))
    w: Any = module.get_variable('params', name)
    if w is None:
        raise flax.errors.ScopeParamNotFoundError(name, '/'.join(module.path))
    if w.shape != shape:
        raise flax.errors.ScopeParamShapeError(name, '/'.join(module.path), shape, w.shape)
    return w


class Linear(nn.Module):
    """x -> the product of x and a weight, as the equation states; the second factor is the weight's shape.

    `Linear('BTD,DKH->BTKH', sizes)` has the params `w` DKH and, with a bias, `b` KH. `init` creates them in
    the dtype of x, w with variance 1 / fan-in and b as zeros.
    """

    equation: str
    sizes: Mapping[str, int]
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array, dtype: DTypeLike | None = None) -> Array:
        _, letters, contracted, output, result = axes(self.equation)
        std = math.prod(self.sizes[a] for a in contracted) ** -0.5
        spec = WeightAxes(letters, contracted)
        w = param(self, 'w', nn.initializers.normal(std), spec, self.sizes, x.dtype)
        y = pin(einsum(self.equation, x, w, dtype), result)
        if self.bias:
            spec = WeightAxes(output, decays=False)
            y += param(self, 'b', nn.initializers.zeros, spec, self.sizes, x.dtype)
        return y


class RMSNorm(nn.Module):
    """x …D -> …D: normalizes to root mean square 1, then multiplies by the gain w, in float32.

    `letter` is that of the last axis of x.
    """

    letter: str
    sizes: Mapping[str, int]
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        spec = WeightAxes(self.letter, decays=False)
        w = param(self, 'w', nn.initializers.ones, spec, self.sizes, x.dtype)
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * w).astype(x.dtype)


class LayerNorm(nn.Module):
    """x …D -> …D: normalizes to mean 0 and variance 1, then applies the gain w and the shift b, in float32.

    `letter` is that of the last axis of x.
    """

    letter: str
    sizes: Mapping[str, int]
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        spec = WeightAxes(self.letter, decays=False)
        w = param(self, 'w', nn.initializers.ones, spec, self.sizes, x.dtype)
        b = param(self, 'b', nn.initializers.zeros, spec, self.sizes, x.dtype)
        y = x.astype(jnp.float32)
        y -= jnp.mean(y, axis=-1, keepdims=True)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * w + b).astype(x.dtype)


def rope(x: Array, positions: Array, theta: float) -> Array:
    """Rotates x BT…H by its positions BT: the pair (i, i + H/2) by the angle position * theta**(-2i/H).

    Rotary embeddings of RoFormer (Su et al., 2021) in the half-split form of Hugging Face checkpoints,
    computed in float32.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.reshape(*positions.shape, *[1] * (x.ndim - 2)) * frequencies  # BT…(H/2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    y = x.astype(jnp.float32)
    if x.shape[1] == 1:
        return _rotate_halves(y, cos, sin).astype(x.dtype)
    y = jax.lax.platform_dependent(y, cos, sin, cuda=_rotate_reshaped, default=_rotate_halves)
    return y.astype(x.dtype)


def _rotate_halves(y: Array, cos: Array, sin: Array) -> Array:
    a, b = jnp.split(y, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _rotate_reshaped(y: Array, cos: Array, sin: Array) -> Array:
    """`_rotate_halves` without a concatenation: half the time on a GPU, but on a TPU it copies weights."""
    halves = y.reshape(*y.shape[:-1], 2, -1)
    rotated = halves * cos[..., None, :] + jnp.flip(halves, axis=-2) * jnp.stack([-sin, sin], axis=-2)
    return rotated.reshape(y.shape)
