"""Two GPU kernels for decoding rows that share a prefix, because cuDNN is slow with one query per row.

The first attends to the prefix, divided into pieces so that few rows occupy the whole GPU. The second attends
to the filled slots of each row's own cache, and merges its result with those of the pieces. They are written
in Pallas for Triton, which newer versions of JAX deprecate; `lowers` says whether the installed one has it.
"""

import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

QUERIES, KEYS = 64, 64  # the largest tile of scores that a program of the first kernel computes at once
PROGRAMS = 128  # the pieces of prefixes make about so many programs, one per multiprocessor
SLOTS = 32  # the own slots that a program of the second kernel reads at once
NOTHING = -1e30  # the log-sum-exp of no scores; finite, because differences of infinities are not numbers


def supports(q: Array) -> bool:
    """Whether the kernels support the dtype and the shape of queries BTNH."""
    H = q.shape[-1]
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[1] == 1 and H in (16, 32, 64, 128)


@functools.cache
def lowers() -> bool:
    """Whether this version of jax still lowers the kernels for the first local device."""
    if _triton() is None:
        return False
    q, keys = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((1, 1, 1, 16), (1, 64, 1, 16)))
    n = jax.ShapeDtypeStruct((1,), jnp.int32)

    def attend(q: Array, keys: Array, n: Array) -> Array:
        return attend_to_own(q, keys, keys, n, *attend_in_pieces(q, keys, keys, n))

    try:
        jax.jit(attend).lower(q, keys, n)
    except Exception:  # whatever it is, such as a GPU that it does not know, cuDNN can still attend
        return False
    return True


@functools.cache
def _triton() -> ModuleType | None:
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        return None
    return triton


def _settings(warps: int, interpret: bool) -> dict[str, Any]:
    """The arguments of `pallas_call`; `interpret` runs a kernel on any device, for tests."""
    triton = _triton()
    assert triton is not None
    return {'compiler_params': triton.CompilerParams(num_warps=warps, num_stages=3), 'interpret': interpret}


def attend_in_pieces(
    q: Array, k: Array, v: Array, lengths: Array, *, interpret: bool = False
) -> tuple[Array, Array]:
    """Attention of B1NH to C pieces of each group's k, v ASKH -> CBNH float32, and its log-sum-exps CBN."""
    triton: Any = _triton()
    B, _, N, H = q.shape
    A, S, K = k.shape[:3]
    R = B // A
    rows, tiles, piece, pieces = _tiling(A, R, N, S)

    def kernel(q_ref: Any, k_ref: Any, v_ref: Any, lengths_ref: Any, y_ref: Any, log_sums_ref: Any) -> None:
        head, tile, c = pl.program_id(0), pl.program_id(1), pl.program_id(2)
        kv_head, a = head // (N // K), tile // tiles
        t = tile % tiles * rows + jnp.arange(rows)
        first = (tile % tiles) * rows + a * R
        of_group = t < R
        queries = triton.load(q_ref.at[pl.ds(first, rows), head], mask=of_group[:, None], other=0.0)
        end = jnp.minimum((c + 1) * piece, lengths_ref[a])

        def attend(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            slot = c * piece + i * KEYS
            filled = slot + jnp.arange(KEYS) < end
            where = a, pl.ds(slot, KEYS), kv_head
            keys = triton.load(k_ref.at[where], mask=filled[:, None], other=0.0)
            values = triton.load(v_ref.at[where], mask=filled[:, None], other=0.0)
            scores = jnp.where(filled, triton.dot(queries, keys.T) * H**-0.5, NOTHING)
            largest, weights, scale = _rescaled(carry[0], scores, axis=1)
            y = carry[2] * scale[:, None] + triton.dot(weights.astype(values.dtype), values)
            return largest, carry[1] * scale + weights.sum(1), y

        start = jnp.full(rows, NOTHING), jnp.zeros(rows), jnp.zeros((rows, H))
        steps = pl.cdiv(jnp.maximum(end - c * piece, 0), KEYS)
        largest, total, y = lax.fori_loop(0, steps, attend, start)
        total = jnp.where(steps > 0, total, 1.0)  # no slot of the piece is filled
        triton.store(y_ref.at[c, pl.ds(first, rows), head], y / total[:, None], mask=of_group[:, None])
        triton.store(log_sums_ref.at[c, pl.ds(first, rows), head], largest + jnp.log(total), mask=of_group)

    shapes = (pieces, B, N, H), (pieces, B, N)
    y, log_sums = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        grid=(N, A * tiles, pieces),
        name='attend_to_prefix',
        **_settings(4, interpret),
    )(q[:, 0], k, v, lengths.astype(jnp.int32))
    return y, log_sums


def _tiling(A: int, R: int, N: int, S: int) -> tuple[int, int, int, int]:
    """For A groups of R rows: the rows of a tile, tiles of a group, slots of a piece, pieces of a prefix."""
    rows = min(max(pl.next_power_of_2(R), 16), QUERIES)  # Triton multiplies tiles of at least 16 rows
    tiles = pl.cdiv(R, rows)
    pieces = min(max(PROGRAMS // (N * A * tiles), 1), pl.cdiv(S, 2 * KEYS))
    piece = pl.cdiv(pl.cdiv(S, pieces), KEYS) * KEYS
    return rows, tiles, piece, pl.cdiv(S, piece)


def attend_to_own(
    q: Array, k: Array, v: Array, lengths: Array, y: Array, log_sums: Array, *, interpret: bool = False
) -> Array:
    """Attention of B1NH to the first `lengths` B slots of k, v BSKH and to what y, `log_sums` hold -> B1NH.

    These are C results CBNH of attention to other keys, and their log-sum-exps CBN.
    """
    triton: Any = _triton()
    B, _, N, H = q.shape
    K = k.shape[2]

    def kernel(
        q_ref: Any, k_ref: Any, v_ref: Any, lengths_ref: Any, y_ref: Any, log_sums_ref: Any, out_ref: Any
    ) -> None:
        head, b = pl.program_id(0), pl.program_id(1)  # programs that run together read neighbouring heads
        kv_head, end = head // (N // K), lengths_ref[b]
        query = q_ref[b, head].astype(jnp.float32) * H**-0.5

        def attend(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            filled = i * SLOTS + jnp.arange(SLOTS) < end
            where = b, pl.ds(i * SLOTS, SLOTS), kv_head
            once = {'mask': filled[:, None], 'other': 0.0, 'eviction_policy': 'evict_first'}
            keys, values = (triton.load(ref.at[where], **once) for ref in (k_ref, v_ref))
            scores = jnp.where(filled, (keys.astype(jnp.float32) * query).sum(1), NOTHING)
            largest, weights, scale = _rescaled(carry[0], scores, axis=0)
            y = carry[2] * scale + (weights[:, None] * values.astype(jnp.float32)).sum(0)
            return largest, carry[1] * scale + weights.sum(), y

        carry = jnp.float32(NOTHING), jnp.float32(0), jnp.zeros(H)
        for c in range(len(y)):
            largest = jnp.maximum(carry[0], log_sums_ref[c, b, head])
            scale, weight = jnp.exp(carry[0] - largest), jnp.exp(log_sums_ref[c, b, head] - largest)
            carry = largest, carry[1] * scale + weight, carry[2] * scale + y_ref[c, b, head] * weight
        _, total, out = lax.fori_loop(0, pl.cdiv(end, SLOTS), attend, carry)
        out_ref[b, head] = (out / total).astype(out_ref.dtype)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((B, N, H), q.dtype),
        grid=(N, B),
        name='attend_to_own',
        **_settings(2, interpret),
    )(q[:, 0], k, v, lengths.astype(jnp.int32), y, log_sums)[:, None]


def _rescaled(largest: Array, scores: Array, axis: int) -> tuple[Array, Array, Array]:
    """The largest score so far, the exponentials of the new scores, and the factor of the earlier sums."""
    new = jnp.maximum(largest, scores.max(axis))
    return new, jnp.exp(scores - jnp.expand_dims(new, axis)), jnp.exp(largest - new)
