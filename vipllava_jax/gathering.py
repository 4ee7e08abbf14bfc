"""Gathers arrays that are divided over the devices of a mesh, also over several processes."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def whole_leaves(leaves: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(path, leaf) -> the same with whole arrays, in NumPy or on one device, gathered one at a time.

    If processes have joined, all of them must iterate, because gathering is a program of all devices; each
    device then holds one whole array at a time.
    """
    for path, leaf in leaves:
        yield path, jax.tree.map(_whole, leaf)


def _whole(x: Any) -> Any:
    if not isinstance(x, Array) or len(x.sharding.device_set) == 1:
        return x
    if not (x.is_fully_addressable or x.is_fully_replicated):
        # a process that does not wait could run ahead until the threads of a CPU are all in use
        x = replicate(x).block_until_ready()
    if x.is_fully_replicated:
        return x.addressable_data(0)
    # `np.asarray(x)` would keep its result in memory as long as x
    whole = np.empty(x.shape, x.dtype)
    for shard in x.addressable_shards:
        if shard.replica_id == 0:
            whole[shard.index] = shard.data
    return whole


def replicate(x: Array) -> Array:
    """An array on a mesh -> the same, whole on each device; all processes of the mesh call it."""
    assert isinstance(x.sharding, NamedSharding), x.sharding
    return _replicate(x, mesh=x.sharding.mesh)


@functools.partial(jax.jit, static_argnames='mesh')
def _replicate(x: Array, *, mesh: Mesh) -> Array:
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))
