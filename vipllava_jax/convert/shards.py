"""Reads the parts of tensors that the local devices hold, and rearranges each on its device."""

import functools
import math
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from vipllava_jax.convert.table import Leaf, Sizes, rearrange_axes, split_axes
from vipllava_jax.convert.tensors import READABLE, Tensor, read_tensor_parts

Index = tuple[slice, ...]


class ProgramKey(NamedTuple):
    """What the program that rearranges parts of a tensor depends on."""

    stored: str  # the dtype in the file
    layout: str
    sizes: Sizes  # of the letters, in one part
    devices: tuple[jax.Device, ...]  # each holds one part


class LocalParts(NamedTuple):
    """The parts of a tensor that the local devices hold: all of it for a single device."""

    leaf: Leaf
    sharding: Sharding
    parts: tuple[Tensor, ...]  # without repetitions
    holders: tuple[tuple[jax.Device, ...], ...]  # the devices that hold each part
    key: ProgramKey

    def read(self, buffer: memoryview, program: Future[Callable[[list[Array]], list[Array]]]) -> Array:
        """The leaf with its sharding; `program` rearranges the parts, and the buffer is free afterwards."""
        views = read_tensor_parts(self.parts, buffer)
        # the buffer is in use until the program is done: for the transfer, or on a CPU as the arrays
        uploaded = [
            jax.device_put(view, device)
            for view, devices in zip(views, self.holders, strict=True)
            for device in devices
        ]
        arrays = jax.block_until_ready(program.result()(uploaded))
        return jax.make_array_from_single_device_arrays(self.leaf.shapes[1], self.sharding, arrays)


def local_parts(leaf: Leaf, tensor: Tensor, sharding: Sharding) -> LocalParts:
    """The parts of a tensor that the local devices hold if its leaf has this sharding."""
    holders: dict[Tensor, list[jax.Device]] = defaultdict(list)
    sizes = leaf.sizes
    for device, index in sharding.addressable_devices_indices_map(leaf.shapes[1]).items():
        ranges = _ranges(leaf, index or ())
        holders[tensor.part(_index_in_file(leaf, ranges))].append(device)
        sizes = tuple((letter, len(ranges[letter])) for letter, _ in leaf.sizes)
    devices = tuple(device for each in holders.values() for device in each)
    key = ProgramKey(tensor.dtype, leaf.layout, sizes, devices)
    return LocalParts(leaf, sharding, tuple(holders), tuple(map(tuple, holders.values())), key)


def _ranges(leaf: Leaf, index: Index) -> dict[str, range]:
    """The range of each letter that an index of the leaf selects."""
    sizes = dict(leaf.sizes)
    found = {letter: range(size) for letter, size in leaf.sizes}
    axes = split_axes(leaf.layout.split('->')[1])
    for axis, part in zip(axes, index, strict=False):
        whole = range(math.prod(sizes[letter] for letter in axis))
        if whole[part] != whole:
            found[axis] = whole[part]  # a mesh divides no merged axis
    return found


def _index_in_file(leaf: Leaf, ranges: dict[str, range]) -> Index:
    """The slices of a tensor in its file that hold ranges of letters."""
    sizes = dict(leaf.sizes)
    index = []
    for axis in split_axes(leaf.layout.split('->')[0]):
        first, inner = ranges[axis[0]], axis[1:]
        # of letters merged in one axis, a mesh divides only the first
        assert all(len(ranges[letter]) == sizes[letter] for letter in inner), leaf.layout
        step = math.prod(sizes[letter] for letter in inner)
        index.append(slice(first.start * step, first.stop * step))
    return tuple(index)


def compile_program(key: ProgramKey, dtype: DTypeLike | None) -> Callable[[list[Array]], list[Array]]:
    """The compiled program that rearranges the uploaded part of each device, and casts it to `dtype`.

    Several devices run it together, so that it is compiled once for all of them. It has no communication.
    """
    stored, layout, sizes, devices = key
    shape = Leaf('', '', layout, sizes).shapes[0]
    # autotuning takes longer than it could save
    options: Any = {'xla_gpu_autotune_level': '0'} if devices[0].platform == 'gpu' else None
    target = jnp.dtype(dtype or stored)
    if len(devices) == 1:
        place: Sharding = jax.sharding.SingleDeviceSharding(devices[0])
        x = jax.ShapeDtypeStruct(shape, READABLE[stored], sharding=place)
        one = rearrange.lower(x, layout, sizes, target).compile(options)
        return lambda parts: [one(*parts)]
    # the parts of all devices, one after the other along axis 0
    place = NamedSharding(Mesh(np.array(devices), 'all'), PartitionSpec('all'))
    whole = (len(devices) * shape[0], *shape[1:])
    x = jax.ShapeDtypeStruct(whole, READABLE[stored], sharding=place)
    rearrange_part = functools.partial(_rearranged, layout=layout, sizes=sizes, dtype=target)
    mapped = jax.shard_map(rearrange_part, mesh=place.mesh, in_specs=place.spec, out_specs=place.spec)
    compiled = jax.jit(mapped).lower(x).compile(options)

    def run(parts: list[Array]) -> list[Array]:
        joined = compiled(jax.make_array_from_single_device_arrays(whole, place, parts))
        return [shard.data for shard in joined.addressable_shards]

    return run


def _rearranged(x: Array, layout: str, sizes: Sizes, dtype: DTypeLike) -> Array:
    # without the copy, jax could return x if nothing changes, and the result would share the buffer's memory
    return jnp.copy(rearrange_axes(x, layout, dict(sizes)).astype(dtype))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def rearrange(x: Array, layout: str, sizes: Sizes, dtype: DTypeLike) -> Array:
    """`rearrange_axes` on the device, and a cast; the result never shares memory with x."""
    return _rearranged(x, layout, sizes, dtype)
