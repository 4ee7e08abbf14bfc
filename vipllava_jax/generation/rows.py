"""Places rows of a batch on the devices of a mesh, and reads tokens from there."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vipllava_jax.generation.state import row_letters
from vipllava_jax.mesh_text import row_parts
from vipllava_jax.sharding import mesh_of, sharding


def place_rows(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays whose first axis is the batch -> the same on a mesh, with the last row repeated to fill it.

    The number of rows becomes a multiple of the devices that divide a batch. Without a mesh, the same arrays.
    """
    if mesh is None:
        return tree
    return jax.tree.map(functools.partial(_place, mesh=mesh, parts=row_parts(mesh.shape)), tree)


def _place(x: Any, mesh: Mesh, parts: int) -> Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        words = _place(jax.random.key_data(x), mesh, parts)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
    x = np.asarray(x)
    if missing := -len(x) % parts:
        x = np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])
    place = sharding(row_letters(x), x.shape, mesh)
    return jax.make_array_from_callback(x.shape, place, lambda index: x[index])


def to_host(x: Array) -> np.ndarray:
    """An array as numpy, complete in every process, even if other processes hold a part of it."""
    return np.asarray(x if x.is_fully_addressable else _replicated(mesh_of(x))(x))


@functools.cache
def _replicated(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
