"""Gathers arrays that are divided over the devices of a mesh, and over processes, one at a time."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def whole_leaves(leaves: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Leaves by path -> the same, each whole: divided arrays become NumPy arrays, or arrays on one device.

    If processes have joined, all of them iterate, because gathering an array is a program of all devices. It
    takes the memory of that array on each of them.
    """
    for path, leaf in leaves:
        yield path, jax.tree.map(_whole, leaf)


def _whole(x: Any) -> Any:
    if not isinstance(x, Array) or len(x.sharding.device_set) == 1:
        return x
    if not (x.is_fully_addressable or x.is_fully_replicated):
        assert isinstance(x.sharding, NamedSharding), x.sharding
        # a process that does not wait could run ahead until the threads of a CPU are all in use
        x = _replicated(x, mesh=x.sharding.mesh).block_until_ready()
    if x.is_fully_replicated:
        return x.addressable_data(0)
    # `np.asarray(x)` would keep its result in memory as long as x
    whole = np.empty(x.shape, x.dtype)
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            whole[shard.index] = shard.data
    return whole


@functools.partial(jax.jit, static_argnames='mesh')
def _replicated(x: Array, *, mesh: Mesh) -> Array:
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))
