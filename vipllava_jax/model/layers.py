"""Layers shared by the vision tower and the decoder: Linear, norms, rotary embeddings."""

import math
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from vipllava_jax.model.weights import einsum


class Linear(nn.Module):
    """x -> the product of x and a weight, as the equation states; the second factor is the weight's shape.

    `Linear('BTD,DKH->BTKH', sizes)` has the params `w` DKH and, with a bias, `b` KH. `init` creates them in
    the dtype of x.
    """

    equation: str
    sizes: Mapping[str, int]
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array, dtype: DTypeLike | None = None) -> Array:
        factors, out = self.equation.split('->')
        letters = factors.split(',')[1]
        kept = [a for a in letters if a in out]
        fan_in = math.prod(self.sizes[a] for a in letters if a not in out)
        shape = tuple(self.sizes[a] for a in letters)
        w = param(self, 'w', nn.initializers.normal(fan_in**-0.5), shape, x.dtype)
        y = einsum(self.equation, x, w, dtype)
        if self.bias:
            y += param(self, 'b', nn.initializers.zeros, tuple(self.sizes[a] for a in kept), x.dtype)
        return y


def param(module: nn.Module, name: str, make: Any, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Creates the parameter at init; afterwards returns the stored leaf, which may be quantized or have LoRA.

    Raises Flax's ScopeParamNotFoundError if the leaf is missing and ScopeParamShapeError if its shape is not
    `shape`; both name the path of the module.
    """
    if module.is_initializing():
        return module.param(name, make, shape, dtype)
    w: Any = module.get_variable('params', name)
    if w is None:
        raise flax.errors.ScopeParamNotFoundError(name, '/'.join(module.path))
    if w.shape != shape:
        raise flax.errors.ScopeParamShapeError(name, '/'.join(module.path), shape, w.shape)
    return w


class RMSNorm(nn.Module):
    """…D -> …D: normalizes to root mean square 1, then multiplies by the gain w, in float32."""

    width: int
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w = param(self, 'w', nn.initializers.ones, (self.width,), x.dtype)
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * w).astype(x.dtype)


class LayerNorm(nn.Module):
    """…D -> …D: normalizes to mean 0 and variance 1, then applies the gain w and the shift b, in float32."""

    width: int
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w = param(self, 'w', nn.initializers.ones, (self.width,), x.dtype)
        b = param(self, 'b', nn.initializers.zeros, (self.width,), x.dtype)
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
