"""Places the rows of a batch on the devices of a mesh, and copies tokens back to the host."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from vipllava_jax import pods
from vipllava_jax.gathering import replicate
from vipllava_jax.generation.state import row_letters
from vipllava_jax.mesh_text import row_parts
from vipllava_jax.sharding import sharding
from vipllava_jax.weight_sharding import put


def place_rows(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays whose first axis is the batch -> the same, with the rows divided over a mesh.

    The last row is repeated until the mesh divides the number of rows. Without a mesh, the same arrays.
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
    return put(x, sharding(row_letters(x), x.shape, mesh))


def of_first_process(value: Any, mesh: Mesh | None) -> Any:
    """A number -> that of process 0, if the mesh has devices of several processes; all of them call it."""
    return pods.from_first(value) if mesh is not None and mesh.is_multi_process else value


def clock(max_time: np.ndarray, mesh: Mesh | None) -> Callable[[], float]:
    """A function that returns the seconds since now, the same in all processes; 0 if no time is limited."""
    start = time.monotonic()
    if np.isinf(max_time).all():
        return lambda: 0.0
    return lambda: of_first_process(time.monotonic() - start, mesh)


def to_host(x: Array) -> np.ndarray:
    """An array as NumPy, whole in every process; if several hold parts of it, all of them call this."""
    return np.asarray(x if x.is_fully_addressable else replicate(x))
