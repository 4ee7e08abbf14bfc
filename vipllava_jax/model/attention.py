"""Attention of queries to keys and values, by cuDNN where it can and by XLA elsewhere."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from vipllava_jax.config import Attention
from vipllava_jax.model.weights import einsum
from vipllava_jax.sharding import per_device


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    offset: Array | None = None,
    mask: Array | None = None,
    implementation: Attention | None = None,
) -> Array:
    """Attention of queries q BTNH to keys and values k, v BSKH -> BTNH.

    If `causal`, the query t of a row is in slot offset + t and attends to the slots up to that one; `offset`
    B is the slot of each row's first query, or None for slot 0 in all rows. Otherwise every query attends to
    all slots. `mask` BS is False at slots to hide.

    By default cuDNN computes the attention where it can, and XLA elsewhere. cuDNN needs an Ampere or later
    GPU, float16 or bfloat16, heads of at most 128 in multiples of 8, no mask, and either no `offset` or a
    single query per row. `implementation` selects one of the two; 'cudnn' still uses XLA where a mask or
    several queries with an `offset` rule out cuDNN.

    Raises ValueError if 'cudnn' is selected for a dtype or head size that it does not support, if `offset`
    does not have the shape B, and if it is given although `causal` is False.
    """
    _check_offset(offset, causal, len(q))
    supported = cudnn_supports(q)
    if implementation == 'cudnn' and not supported:
        raise ValueError(
            f'cuDNN attends in half precision with heads of 8 to 128, not {q.dtype} {q.shape[-1]}'
        )
    fits = supported and mask is None and (offset is None or q.shape[1] == 1)
    if fits and (implementation == 'cudnn' or (implementation is None and has_cudnn())):
        return _attend_with_cudnn(q, k, v, causal, offset)
    return attention_with_weights(q, k, v, causal=causal, offset=offset, mask=mask)[0]


def cudnn_supports(q: Array) -> bool:
    """Whether cuDNN's fused attention supports the dtype and the head size of queries BTNH."""
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


@functools.cache
def has_cudnn() -> bool:
    """Whether cuDNN's fused attention runs on the first local device: a GPU of compute capability >= 8."""
    device = jax.local_devices()[0]
    return device.platform == 'gpu' and float(getattr(device, 'compute_capability', None) or 0) >= 8


def attention_with_weights(
    q: Array, k: Array, v: Array, *, causal: bool, offset: Array | None = None, mask: Array | None = None
) -> tuple[Array, Array]:
    """`attend` by XLA -> the result BTNH and the attention weights BNTS; the softmax is in float32."""
    _check_offset(offset, causal, len(q))
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    q = q.reshape(B, T, K, N // K, H)
    scores = einsum('BTKGH,BSKH->BKGTS', q, k, jnp.float32) * H**-0.5
    if causal:
        slots = jnp.arange(S)
        query_slots = jnp.arange(T)[None] if offset is None else offset.reshape(-1, 1) + jnp.arange(T)
        scores = jnp.where(slots <= query_slots[:, None, None, :, None], scores, -1e30)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, None, :], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1).astype(q.dtype)
    y = einsum('BKGTS,BSKH->BTKGH', weights, v)
    return y.reshape(B, T, N, H), weights.reshape(B, N, T, S)


def _check_offset(offset: Array | None, causal: bool, rows: int) -> None:
    if offset is None:
        return
    if not causal:
        raise ValueError('offset: expected None, because without `causal` every query attends to all slots')
    if jnp.shape(offset) != (rows,):
        raise ValueError(
            f'offset: expected an array of the shape ({rows},), one slot per row, or None for slot 0, '
            f'found {type(offset).__name__} of the shape {jnp.shape(offset)}'
        )


def _attend_with_cudnn(q: Array, k: Array, v: Array, causal: bool, offset: Array | None) -> Array:
    """`attend` by cuDNN; one query per row attends to its first `offset` + 1 slots, as sequence lengths."""
    if offset is not None:

        def attend_to_slots(q: Array, k: Array, v: Array, lengths: Array) -> Array:
            return _cudnn(q, k, v, False, lengths)

        lengths = jnp.minimum(offset + 1, k.shape[1])
        return per_device(attend_to_slots, 'BTNH,BSKH,BSKH,B->BTNH')(q, k, v, lengths)

    def attend_to_prompt(q: Array, k: Array, v: Array) -> Array:
        return (_cudnn_odd if q.shape[1] % 2 else _cudnn)(q, k, v, causal)

    return per_device(attend_to_prompt, 'BTNH,BSKH,BSKH->BTNH')(q, k, v)


def _cudnn(q: Array, k: Array, v: Array, causal: bool, lengths: Array | None = None) -> Array:
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation='cudnn'
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cudnn_odd(q: Array, k: Array, v: Array, causal: bool) -> Array:
    """Attention for an odd T, for which cuDNN has no gradient: the gradient pads T by one masked slot."""
    return _cudnn(q, k, v, causal)


def _cudnn_odd_forward(q: Array, k: Array, v: Array, causal: bool) -> tuple[Array, tuple[Array, ...]]:
    return _cudnn(q, k, v, causal), (q, k, v)


def _cudnn_odd_backward(causal: bool, qkv: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    B, T = dy.shape[:2]

    def padded(*qkv: Array) -> Array:
        q, k, v = (jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in qkv)
        return _cudnn(q, k, v, causal, None if causal else jnp.full(B, T))[:, :T]

    return jax.vjp(padded, *qkv)[1](dy)


_cudnn_odd.defvjp(_cudnn_odd_forward, _cudnn_odd_backward)
