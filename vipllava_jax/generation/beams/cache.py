"""Reorders the cache of the beams of beam search in place: only the slots in which beams differ are moved.

Beams that continue the same beam have the same slots up to there, and all beams of a row those of its prompt,
which could therefore be stored once. For each two beams of a row we keep the first slot in which they may
differ: nothing before it has to be moved when one takes the place of the other.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from vipllava_jax.model.llama import Cache
from vipllava_jax.sharding import pin

WINDOW = 64  # slots that are moved at once; divides the number of slots, a multiple of 128
NEVER_DIFFER = jnp.iinfo(jnp.int32).max  # a beam and itself


def shared_at_start(first: Array, W: int) -> Array:
    """The table BWW of the first slot in which two beams may differ, for prompts of `first` B tokens."""
    return with_self(jnp.broadcast_to(first[:, None, None], (len(first), W, W)))


def shared_after(shared: Array, parents: Array, positions: Array) -> Array:
    """The table BWW after each beam has become the continuation, at `positions` B, of its parent BW."""
    inherited = jax.vmap(lambda table, parent: table[parent][:, parent])(shared, parents)
    return with_self(jnp.minimum(inherited, positions[:, None, None]))


def with_self(shared: Array) -> Array:
    return jnp.where(jnp.eye(shared.shape[1], dtype=bool), NEVER_DIFFER, shared)


def reorder(cache: Cache, shared: Array, parents: Array, filled: Array) -> Cache:
    """The cache of B·W beams in which each beam has the `filled` B slots of its parent BW.

    `shared` BWW is the table before the beams change places. What lies past the filled slots is arbitrary.
    """
    moved = jnp.take_along_axis(shared, parents[:, :, None], axis=2)[:, :, 0]
    begin = jnp.where(moved < filled[:, None], moved, NEVER_DIFFER).min() // WINDOW
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
