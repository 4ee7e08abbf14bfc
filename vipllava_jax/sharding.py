"""Shardings: letters to the axes of a mesh of devices.

A mesh has up to three axes. Rows of a batch are divided over `data`. Heads, the MLP and the vocabulary are
divided over `tensor`. `fsdp` divides both rows and the width of weights, which are gathered where they are
used (fully sharded data parallelism). Axes of a mesh are Auto: XLA derives the shardings between those that
`pin` states.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from vipllava_jax.mesh_text import AXES, ROW_AXES, check_axis
from vipllava_jax.messages import brief

RULES = {  # letter -> the mesh axes that divide it, the outermost first; other letters stay whole
    'B': ROW_AXES,
    'D': ('fsdp',),
    'E': ('fsdp',),
    'M': ('fsdp',),
    'N': ('tensor',),
    'K': ('tensor',),
    'F': ('tensor',),
    'V': ('tensor',),
}
SMALL = 1 << 20  # bytes up to which the latency of a sum over devices counts more than its bandwidth

AnyMesh = Mesh | AbstractMesh


def make_mesh(axes: Mapping[str, int], *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of Auto axes, as in `make_mesh({'data': 2, 'tensor': 4})`.

    The axes are some of data, fsdp and tensor, with their sizes. `devices` are the devices to use, by default
    all; they may be more than the mesh needs if they belong to one process. `tensor` varies fastest, so that
    it lies within a host.

    Raises ValueError for another axis or size, and if there are too few devices.
    """
    for name, size in axes.items():
        check_axis(name)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f'mesh: {name} is {brief(size)}, but must be a whole number of devices')
    available = list(jax.devices() if devices is None else devices)
    needed = math.prod(axes.values())
    if needed > len(available):
        text = ' x '.join(f'{name} {size}' for name, size in axes.items())
        raise ValueError(f'mesh: {text} needs {needed} devices, but there are {len(available)}')
    if needed < len(available) and len({device.process_index for device in available}) > 1:
        raise ValueError(
            f'mesh: it has {needed} devices, but the processes have {len(available)}: a mesh over several '
            'processes must use all devices'
        )
    names = [name for name in AXES if name in axes]
    sizes = [axes[name] for name in names]
    types = (AxisType.Auto,) * len(names)
    if devices is None and needed == len(available):
        return jax.make_mesh(sizes, names, axis_types=types)
    return Mesh(np.array(available[:needed]).reshape(sizes), names, axis_types=types)


def spec(letters: str, shape: Sequence[int], mesh: AnyMesh) -> PartitionSpec:
    """The partition of an array by its letters; a mesh axis is used once, and only if it divides the size."""
    used: set[str] = set()
    parts: list[Any] = []
    for letter, size in zip(letters, shape, strict=True):
        axes = _dividing(size, [a for a in RULES.get(letter, ()) if a not in used], mesh)
        used |= {*axes}
        parts.append(axes if len(axes) > 1 else axes[0] if axes else None)
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)


def _dividing(size: int, axes: Sequence[str], mesh: AnyMesh) -> tuple[str, ...]:
    """The first of the axes, as many as possible, by whose number of devices a size is divisible."""
    found = tuple(a for a in axes if mesh.shape.get(a, 1) > 1)
    while found and size % math.prod(mesh.shape[a] for a in found):
        found = found[:-1]
    return found


def sharding(letters: str, shape: Sequence[int], mesh: AnyMesh | None) -> Sharding:
    """The sharding of an array by its letters; without a mesh the first local device."""
    return NamedSharding(mesh, spec(letters, shape, mesh)) if mesh else default_sharding()


def placed_shape(x: Any, letters: str, *, mesh: AnyMesh | None) -> jax.ShapeDtypeStruct:
    """The shape of an array, with its sharding by its letters, to compile for."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(letters, x.shape, mesh))


def default_sharding() -> jax.sharding.SingleDeviceSharding:
    """The sharding of weights without a mesh: the first local device."""
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def on_cpu() -> jax.sharding.SingleDeviceSharding:
    """The sharding of arrays that are only written to files or compared: the CPU's memory."""
    return jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])


def mesh_of(*trees: Any) -> Any:
    """The mesh on which arrays or their shapes lie; None for a single device and inside `per_device`.

    Under jit it is the abstract mesh that the traced arrays carry. Constants carry none.
    """
    for x in jax.tree.leaves(trees):
        placed = jax.typeof(x).sharding if isinstance(x, jax.core.Tracer) else getattr(x, 'sharding', None)
        mesh = getattr(placed, 'mesh', None)
        if mesh is not None and not mesh.empty and AxisType.Manual not in mesh.axis_types:
            return mesh
    return None


def pin(x: Array, letters: str, mesh: AnyMesh | None = None) -> Array:
    """Under jit, x with the sharding of its letters on the given mesh, or on that of x.

    Outside jit, and without a mesh, x itself.
    """
    mesh = mesh or mesh_of(x)
    # Constants are traced under jit, but not by the derivatives of functions that are not jitted.
    if mesh is None or not isinstance(lax.full((), 0), jax.core.Tracer):
        return x
    return lax.with_sharding_constraint(x, sharding(letters, x.shape, mesh))


def shard_shape(x: Array, letters: str) -> tuple[int, ...]:
    """The shape of the part of x that each device holds, by its letters."""
    mesh = mesh_of(x)
    return x.shape if mesh is None else sharding(letters, x.shape, mesh).shard_shape(x.shape)


def per_device(
    f: Callable[..., Array], equation: str, *, combine: Callable[[Array, str], Array] | None = None
) -> Callable[..., Array]:
    """f, applied on each device to the parts of its arguments that the equation's letters divide.

    With `per_device(attend, 'BTNH,BSKH,BSKH,B->BTNH')` each device attends to its own rows and heads. A mesh
    axis is used only if it divides the size of every letter that RULES assign to it. If one of these letters
    is not in the result, `combine`, by default a sum, combines the results over that mesh axis. Without a
    mesh, f itself.
    """
    join = combine or sum_over_devices
    factors, result = equation.split('->')
    letters = factors.split(',')

    def apply(*args: Array) -> Array:
        mesh = mesh_of(args)
        if mesh is None:
            return f(*args)
        axes = _axes_by_letter(letters, args, mesh)
        kept = {axis for letter in axes if letter in result for axis in axes[letter]}
        joined = dict.fromkeys(axis for found in axes.values() for axis in found if axis not in kept)

        def part(*parts: Array) -> Array:
            y = f(*parts)
            for axis in joined:
                y = join(y, axis)
            return y

        specs = [PartitionSpec(*(axes.get(a) or None for a in operand)) for operand in (*letters, result)]
        mapped = jax.shard_map(
            part, mesh=mesh, in_specs=tuple(specs[:-1]), out_specs=specs[-1], check_vma=False
        )
        return mapped(*args)

    return apply


def _axes_by_letter(
    letters: Sequence[str], args: Sequence[Array], mesh: AnyMesh
) -> dict[str, tuple[str, ...]]:
    """The mesh axes that divide each letter of some arrays, the same ones in all arrays."""
    sizes: dict[str, int] = {}
    for operand, x in zip(letters, args, strict=True):
        for letter, size in zip(operand, x.shape, strict=True):
            sizes[letter] = math.gcd(sizes.get(letter, 0), size)
    rows = _dividing(sizes['B'], RULES['B'], mesh) if 'B' in sizes else ()
    axes = {'B': rows} if rows else {}
    for axis in AXES:
        sharded: list[str] = []  # of those that appear in the same array, such as M and D, only the first
        for letter in sizes:
            together = {*''.join(operand for operand in letters if letter in operand)}
            if letter != 'B' and axis in RULES.get(letter, ()) and together.isdisjoint(sharded):
                sharded.append(letter)
        divides = all(_dividing(sizes[letter], (axis,), mesh) for letter in sharded)
        if axis not in rows and divides:
            axes |= dict.fromkeys(sharded, (axis,))
    return axes


def sum_over_devices(y: Array, axis: str) -> Array:
    """The sum of y over the devices of a mesh axis, inside `per_device`; equal to the bit on all devices.

    Two GPUs exchange small parts and add them locally, which has less latency than a reduction.
    """

    def gathered(y: Array) -> Array:
        parts = lax.all_gather(y, axis)
        return parts.astype(np.float32).sum(axis=0).astype(y.dtype)

    def reduced(y: Array) -> Array:
        return lax.psum(y, axis)

    if lax.axis_size(axis) > 2 or y.size * y.dtype.itemsize > SMALL:
        return reduced(y)
    return lax.platform_dependent(y, cuda=gathered, default=reduced)
