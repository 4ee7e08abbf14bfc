"""The sharding of every weight on a mesh: plain, quantized or with LoRA."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from vipllava_jax.model.params import weight_axes
from vipllava_jax.model.quantized import Int4, Quantized
from vipllava_jax.model.weights import LoRA, WeightAxes
from vipllava_jax.sharding import AnyMesh, default_sharding, sharding


def leaf_sharding(path: str, leaf: Any, mesh: AnyMesh | None) -> Any:
    """The sharding of a weight or its shape by the letters of its path; a tree of them if it has parts.

    Without a mesh, all weights are on the first local device.
    """
    return sharding_by_axes(weight_axes(path), leaf, mesh)


def leaf_shardings(leaves: Mapping[str, Any], mesh: AnyMesh | None) -> Any:
    """The sharding of each leaf by its path; without a mesh a single one."""
    if mesh is None:
        return default_sharding()
    return {path: leaf_sharding(path, leaf, mesh) for path, leaf in leaves.items()}


def sharding_by_axes(axes: WeightAxes, leaf: Any, mesh: AnyMesh | None) -> Any:
    """`leaf_sharding` for a weight with these axes."""

    def by_letters(letters: str, x: Any) -> Any:
        return sharding(letters, x.shape, mesh)

    if isinstance(leaf, LoRA):
        base = sharding_by_axes(axes, leaf.base, mesh)
        a, b = by_letters(axes.contracted + 'R', leaf.a), by_letters('R' + axes.output, leaf.b)
        return dataclasses.replace(leaf, base=base, a=a, b=b)
    if isinstance(leaf, Quantized):
        values = by_letters(axes.output + axes.contracted, leaf.values)
        # the groups of int4 flatten the contracted axes, of which a mesh divides the outermost
        groups = axes.contracted[: leaf.scale.ndim - leaf.output_axes]
        return dataclasses.replace(leaf, values=values, scale=by_letters(axes.output + groups, leaf.scale))
    return by_letters(axes.divisible, leaf)


def divisible_group(axes: WeightAxes, leaf: Int4, mesh: Mesh) -> int:
    """The size of the largest groups of an int4 weight of which none lies on two devices."""
    values = sharding_by_axes(axes, leaf, mesh).values.shard_shape(leaf.values.shape)
    return math.gcd(leaf.group, 8 * math.prod(values[leaf.output_axes :]))


def with_divisible_groups(path: str, leaf: Any, mesh: Mesh) -> Any:
    """A leaf, or its shape -> the same, with int4 groups so small that none lies on two devices."""
    if isinstance(leaf, LoRA):
        return dataclasses.replace(leaf, base=with_divisible_groups(path, leaf.base, mesh))
    if not isinstance(leaf, Int4):
        return leaf
    axes = weight_axes(path)
    group = divisible_group(axes, leaf, mesh)
    if group == leaf.group:
        return leaf
    smaller = functools.partial(_with_group, group=group, axes=axes, mesh=mesh)
    return jax.eval_shape(smaller, leaf) if isinstance(leaf.scale, jax.ShapeDtypeStruct) else smaller(leaf)


@functools.partial(jax.jit, static_argnames=('group', 'axes', 'mesh'))
def _with_group(leaf: Int4, *, group: int, axes: WeightAxes, mesh: Mesh) -> Int4:
    leaf = leaf.with_group(group)
    return jax.lax.with_sharding_constraint(leaf, sharding_by_axes(axes, leaf, mesh))


def put(x: np.ndarray, at: Sharding, shape: tuple[int, ...] = (), rows: slice | None = None) -> jax.Array:
    """A NumPy array that all processes have -> a jax.Array with a sharding, without communication.

    With `rows`, x is only this range of the first axis of an array of the given shape, which must contain
    what the local devices hold: see `local_rows`.
    """
    if at.is_fully_addressable:
        return jax.device_put(x, at)
    if rows is None:
        return jax.make_array_from_callback(x.shape, at, lambda index: x[index])

    def part(index: Any) -> np.ndarray:
        begin, end, _ = index[0].indices(shape[0])
        return x[(slice(begin - rows.start, end - rows.start), *index[1:])]

    return jax.make_array_from_callback(shape, at, part)


def local_rows(at: Sharding, shape: tuple[int, ...]) -> slice:
    """The range of the first axis of an array that the local devices of a sharding hold."""
    indices = [index or () for index in at.addressable_devices_indices_map(shape).values()]
    parts = [index[0].indices(shape[0]) for index in indices]
    return slice(min(begin for begin, *_ in parts), max(end for _, end, _ in parts))
