"""Layers shared by the vision tower and the decoder: Linear, norms, rotary embeddings, attention."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from vipllava_jax.config import Attention
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
        w = own(self, 'w', nn.initializers.normal(fan_in**-0.5), shape, x.dtype)
        y = einsum(self.equation, x, w, dtype)
        if self.bias:
            y += own(self, 'b', nn.initializers.zeros, tuple(self.sizes[a] for a in kept), x.dtype)
        return y


def own(module: nn.Module, name: str, make: Any, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
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
        w = own(self, 'w', nn.initializers.ones, (self.width,), x.dtype)
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * w).astype(x.dtype)


class LayerNorm(nn.Module):
    """…D -> …D: normalizes to mean 0 and variance 1, then applies the gain w and the shift b, in float32."""

    width: int
    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        w = own(self, 'w', nn.initializers.ones, (self.width,), x.dtype)
        b = own(self, 'b', nn.initializers.zeros, (self.width,), x.dtype)
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
        return _turn_halves(y, cos, sin).astype(x.dtype)
    y = jax.lax.platform_dependent(y, cos, sin, cuda=_turn_view, default=_turn_halves)
    return y.astype(x.dtype)


def _turn_halves(y: Array, cos: Array, sin: Array) -> Array:
    a, b = jnp.split(y, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _turn_view(y: Array, cos: Array, sin: Array) -> Array:
    """`_turn_halves` without a concatenation: half the time on a GPU, but a TPU would copy weights for it."""
    halves = y.reshape(*y.shape[:-1], 2, -1)
    turned = halves * cos[..., None, :] + jnp.flip(halves, axis=-2) * jnp.stack([-sin, sin], axis=-2)
    return turned.reshape(y.shape)


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    start: int | Array | None = None,
    mask: Array | None = None,
    implementation: Attention | None = None,
) -> Array:
    """Attention of queries q BTNH to keys and values k, v BSKH -> BTNH.

    Query t is in slot start + t and attends to the slots up to that one; `start` is one int for all rows or
    an array B. If `start` is None, every query attends to all slots. mask BS is False at slots to hide.

    By default cuDNN computes the attention where it can, and XLA elsewhere. cuDNN needs an Ampere or later
    GPU, float16 or bfloat16, heads of at most 128 in multiples of 8, no mask, and one of: start None, start 0
    or a single query per row with an array `start`. `implementation` selects one of the two; 'cudnn' still
    uses XLA where a mask or `start` rules out cuDNN. Raises ValueError if 'cudnn' is selected for a dtype or
    head size that it does not support.
    """
    causal = start is None or (isinstance(start, int) and start == 0)
    single = isinstance(start, Array) and start.ndim == 1 and q.shape[1] == 1
    half = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    fits = half and mask is None and (causal or single)
    if implementation == 'cudnn' and not half:
        raise ValueError(
            f'cuDNN attends in half precision with heads of 8 to 128, not {q.dtype} {q.shape[-1]}'
        )
    if fits and (implementation == 'cudnn' or (implementation is None and has_cudnn())):
        return _attend_cudnn(q, k, v, start)
    y, _ = attend_weights(q, k, v, start=start, mask=mask)
    return y


@functools.cache
def has_cudnn() -> bool:
    """Whether cuDNN's fused attention runs on the first local device: a GPU of compute capability >= 8."""
    device = jax.local_devices()[0]
    return device.platform == 'gpu' and float(getattr(device, 'compute_capability', None) or 0) >= 8


def attend_weights(
    q: Array, k: Array, v: Array, *, start: int | Array | None = None, mask: Array | None = None
) -> tuple[Array, Array]:
    """`attend` by XLA -> the result BTNH and the attention weights BNTS; the softmax is in float32."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    q = q.reshape(B, T, K, N // K, H)
    scores = einsum('BTKGH,BSKH->BKGTS', q, k, jnp.float32) * H**-0.5
    slots = jnp.arange(S)
    if start is not None:
        own = jnp.reshape(start, (-1, 1)) + jnp.arange(T)  # the slot of each query, 1T or BT
        scores = jnp.where(slots <= own[:, None, None, :, None], scores, -1e30)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, None, :], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    y = einsum('BKGTS,BSKH->BTKGH', weights, v)
    return y.reshape(B, T, N, H), weights.reshape(B, N, T, S)


def _attend_cudnn(q: Array, k: Array, v: Array, start: int | Array | None) -> Array:
    """`attend` by cuDNN; a single query attends to the first `start` + 1 slots, given as sequence lengths."""
    if isinstance(start, Array):
        lengths = jnp.minimum(start + 1, k.shape[1])
        return _attend_whole(q, k, v, False, lengths)
    whole = _attend_odd if q.shape[1] % 2 else _attend_whole
    return whole(q, k, v, start is not None)


def _attend_whole(q: Array, k: Array, v: Array, causal: bool, lengths: Array | None = None) -> Array:
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation='cudnn'
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend_odd(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """Attention for an odd T, for which cuDNN has no gradient: the gradient pads T by one masked slot."""
    return _attend_whole(q, k, v, causal)


def _attend_odd_fwd(q: Array, k: Array, v: Array, causal: bool) -> tuple[Array, tuple[Array, ...]]:
    return _attend_whole(q, k, v, causal), (q, k, v)


def _attend_odd_bwd(causal: bool, qkv: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    B, T = dy.shape[:2]

    def even(*qkv: Array) -> Array:
        longer = (jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in qkv)
        return _attend_whole(*longer, causal, None if causal else jnp.full(B, T))[:, :T]  # type: ignore

    return jax.vjp(even, *qkv)[1](dy)


_attend_odd.defvjp(_attend_odd_fwd, _attend_odd_bwd)
