"""Attention of rows that share the beginning of their prompts, whose keys and values are stored once.

The B rows lie in A groups of R rows each; a group shares a prefix, and each row has its own slots after it.
Queries attend to both parts separately, so that a prefix is read once for all rows of its group, and the two
results are merged with the logarithms of the sums of their exponentials (Juravsky et al., 2024).
"""

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vipllava_jax.config import Attention
from vipllava_jax.model.attention import cudnn_supports, has_cudnn
from vipllava_jax.model.weights import einsum
from vipllava_jax.sharding import per_device

# For more own slots than KERNEL_SLOTS, cuDNN attends faster to fewer rows than KERNEL_ROWS. On an H200, a
# layer of the 7B with 1,024 slots takes 67 us with the kernels and 50 with cuDNN for 4 rows, 75 and 67 for 8,
# but 121 and 139 for 32.
KERNEL_SLOTS, KERNEL_ROWS = 512, 32


class PrefixKeys(NamedTuple):
    """The keys and values of a layer that the rows of each group share."""

    k: Array  # ASKH
    v: Array  # ASKH
    lengths: Array  # A, the number of slots that are filled
    members: Array | None = None  # B bool, the rows that share them; None: all

    def of_rows(self, rows: slice) -> 'PrefixKeys':
        """The same for some rows of a batch, which are whole groups unless there is a single group."""
        return self if self.members is None else self._replace(members=self.members[rows])


def attend_after_prefix(
    q: Array,
    prefix: PrefixKeys,
    k: Array,
    v: Array,
    *,
    offset: Array | None = None,
    implementation: Attention | None = None,
) -> Array:
    """Attention of queries q BTNH to their group's prefix and to the rows' own k, v BSKH -> BTNH.

    The query t of a row attends to the whole prefix, if the row is a member, and to the own slots up to
    `offset` + t; `offset` B is the own slot of each row's first query, None for slot 0 in all rows.

    `implementation` is as for `attend`. By default, kernels for GPUs attend with a single query per row. XLA
    also computes what cuDNN does not support, and everything if this version of jax has no `private_cudnn`.
    """
    if _uses_kernels(q, k, offset, implementation):
        attend: Callable[..., Array] = _attend_with_kernels
    else:
        part = _part_with_cudnn if _uses_cudnn(q, offset, implementation) else _part_with_xla
        attend = functools.partial(_attend_in_parts, part)
    own_slots = jnp.zeros(len(q), jnp.int32) if offset is None else offset
    # A single prefix is whole on each device, because rows on all of them share it.
    a = '.' if len(prefix.k) == 1 else 'B'
    equation = f'BTNH,{a}.KH,{a}.KH,{a},B,BSKH,BSKH,B->BTNH'
    members = jnp.ones(len(q), bool) if prefix.members is None else prefix.members
    shared = prefix.k, prefix.v, prefix.lengths, members
    return per_device(attend, equation)(q, *shared, k, v, own_slots)


def _uses_kernels(q: Array, k: Array, offset: Array | None, implementation: Attention | None) -> bool:
    decodes = offset is not None and q.shape[1] == 1
    is_fast = k.shape[1] <= KERNEL_SLOTS or len(q) >= KERNEL_ROWS
    if implementation is not None or not decodes or not is_fast or not has_cudnn():
        return False
    from vipllava_jax.model import prefix_kernels  # takes time, because it imports Pallas

    return prefix_kernels.supports(q) and prefix_kernels.lowers()


def _uses_cudnn(q: Array, offset: Array | None, implementation: Attention | None) -> bool:
    fits = cudnn_supports(q) and (offset is None or q.shape[1] == 1)
    chosen = implementation == 'cudnn' or (implementation is None and has_cudnn())
    return fits and chosen and private_cudnn() is not None


def _attend_with_kernels(
    q: Array,
    prefix_k: Array,
    prefix_v: Array,
    lengths: Array,
    members: Array,
    k: Array,
    v: Array,
    offset: Array,
) -> Array:
    from vipllava_jax.model.prefix_kernels import attend_in_pieces, attend_to_own

    y, log_sums = attend_in_pieces(q, prefix_k, prefix_v, lengths)
    log_sums = jnp.where(members[:, None], log_sums, -jnp.inf)
    return attend_to_own(q, k, v, jnp.minimum(offset + 1, k.shape[1]), y, log_sums)


def _attend_in_parts(
    part: Callable[..., tuple[Array, Array]],
    q: Array,
    prefix_k: Array,
    prefix_v: Array,
    lengths: Array,
    members: Array,
    k: Array,
    v: Array,
    offset: Array,
) -> Array:
    """Attends to both by `part`, one after the other, and merges the results."""
    B, T, N, H = q.shape
    A = len(prefix_k)
    of_groups = q.reshape(A, B // A * T, N, H)  # all queries of a group are queries of one row
    y, log_sum = part(of_groups, prefix_k, prefix_v, lengths=lengths)
    log_sum = jnp.where(members[:, None, None], log_sum.reshape(B, T, N), -jnp.inf)
    shared = y.reshape(q.shape), log_sum
    if T == 1:
        own = part(q, k, v, lengths=jnp.minimum(offset + 1, k.shape[1]))
    else:
        own = part(q, k, v, offset=offset)
    return _merge(shared, own).astype(q.dtype)


def _merge(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
    """Two results BTNH of attention to different keys, with their log-sum-exps BTN -> both in one."""
    largest = jnp.maximum(a[1], b[1])
    wa, wb = jnp.exp(a[1] - largest), jnp.exp(b[1] - largest)
    return (wa[..., None] * a[0] + wb[..., None] * b[0]) / (wa + wb)[..., None]


def _part_with_xla(
    q: Array, k: Array, v: Array, *, lengths: Array | None = None, offset: Array | None = None
) -> tuple[Array, Array]:
    """Attention of q BTNH to k, v BSKH -> BTNH float32, and its log-sum-exp BTN.

    With `lengths` B, to that many slots of each row; otherwise causal, the first query in slot `offset` B.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    scores = einsum('BTKGH,BSKH->BKGTS', q.reshape(B, T, K, N // K, H), k, jnp.float32) * H**-0.5
    if lengths is not None:
        last = jnp.broadcast_to(lengths[:, None] - 1, (B, T))
    else:
        last = jnp.arange(T) + (0 if offset is None else offset[:, None])
        last = jnp.broadcast_to(last, (B, T))
    scores = jnp.where(jnp.arange(S) <= last[:, None, None, :, None], scores, -1e30)
    log_sum = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - log_sum[..., None])
    y = einsum('BKGTS,BSKH->BTKGH', weights.astype(v.dtype), v, jnp.float32)
    return y.reshape(B, T, N, H), jnp.moveaxis(log_sum, -1, 1).reshape(B, T, N)


def _part_with_cudnn(
    q: Array, k: Array, v: Array, *, lengths: Array | None = None, offset: Array | None = None
) -> tuple[Array, Array]:
    """`_part_with_xla` by cuDNN, in the dtype of q; without `lengths`, every `offset` must be 0."""
    found = private_cudnn()
    assert found is not None
    attention, masks = found
    B, T, _, H = q.shape
    if lengths is None:
        mask = {'mask_type': masks.CAUSAL}
    else:
        filled = {'q_seqlen': jnp.full(B, T, jnp.int32), 'kv_seqlen': lengths.astype(jnp.int32)}
        mask = {'mask_type': masks.PADDING, **filled}
    y, log_sum = attention(q, k, v, scale=H**-0.5, return_residual=True, **mask)
    return y, jnp.moveaxis(log_sum, 1, 2)


@functools.cache
def private_cudnn() -> tuple[Callable[..., Any], Any] | None:
    """jax's private function for cuDNN's attention, and its types of masks; None if this jax has others.

    The public function rounds the log-sum-exp to the dtype of q, with errors of 1 % after the merge.
    """
    used = ('query', 'key', 'value', 'q_seqlen', 'kv_seqlen', 'scale', 'mask_type', 'return_residual')
    try:
        module = importlib.import_module('jax._src.cudnn.fused_attention_stablehlo')
        attention, masks = module.dot_product_attention, module.MaskType
        inspect.signature(attention).bind(**dict.fromkeys(used))
        return (attention, masks) if {'CAUSAL', 'PADDING'} <= {*masks.__members__} else None
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
