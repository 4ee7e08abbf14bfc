"""Reorders the cache of beam search in place: only the slots in which beams differ are moved.

The W beams of a row have the slots of its prompt in common, and beams that continue the same beam also the
slots of that beam. The divergence of two beams is the first slot in which they may differ: no slot before it
is moved when one beam takes the place of the other.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from vipllava_jax.model.llama import Cache
from vipllava_jax.sharding import pin

WINDOW = 64  # slots that are moved at once; divides the number of slots, a multiple of 128
NEVER = jnp.iinfo(jnp.int32).max  # the divergence of a beam from itself


def divergence_at_start(lengths: Array, W: int) -> Array:
    """The divergence BWW of the W beams of each row, which all continue a prompt of `lengths` B tokens."""
    return never_from_itself(jnp.broadcast_to(lengths[:, None, None], (len(lengths), W, W)))


def divergence_after(divergence: Array, parents: Array, positions: Array) -> Array:
    """The divergence BWW after each beam has continued its parent BW with a token at `positions` B."""
    inherited = jax.vmap(lambda table, parent: table[parent][:, parent])(divergence, parents)
    return never_from_itself(jnp.minimum(inherited, positions[:, None, None]))


def never_from_itself(divergence: Array) -> Array:
    """The divergence BWW with NEVER on the diagonal."""
    return jnp.where(jnp.eye(divergence.shape[1], dtype=bool), NEVER, divergence)


def reorder(cache: Cache, divergence: Array, parents: Array, filled: Array) -> Cache:
    """The cache of B·W beams in which each beam has the `filled` B slots of its parent BW.

    `divergence` BWW is that before the reordering. What lies past the filled slots is arbitrary.
    """
    moved = jnp.take_along_axis(divergence, parents[:, :, None], axis=2)[:, :, 0]
    begin = jnp.where(moved < filled[:, None], moved, NEVER).min() // WINDOW
    end = -(-filled.max() // WINDOW)

    def move(window: Array, cache: Cache) -> Cache:
        def of_buffer(x: Array) -> Array:
            first = window * WINDOW
            part = lax.dynamic_slice_in_dim(x, first, WINDOW, axis=1)
            return pin(lax.dynamic_update_slice_in_dim(x, of_parents(part, parents), first, axis=1), 'BSKH')

        return jax.tree.map(of_buffer, cache)

    return lax.fori_loop(begin, end, move, cache)


def of_parents(x: Array, parents: Array) -> Array:
    """An array of B·W beams -> the same with the values of each beam's parent BW, within its row."""
    B, W = parents.shape
    # Each row is indexed by itself: a common index would gather the rows from all devices.
    return jax.vmap(lambda row, parent: row[parent])(x.reshape(B, W, *x.shape[1:]), parents).reshape(x.shape)
