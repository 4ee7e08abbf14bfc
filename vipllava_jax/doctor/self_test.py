"""Tests of the devices: a product and a copy on each, and a sum over all, with checked results."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from vipllava_jax.device_kinds import memory_of
from vipllava_jax.sharding import make_mesh

SECONDS = 0.4  # of each measurement
SAMPLE = 64  # rows and columns of the product that are compared with the host's
SUMMED = 1 << 20  # elements on each device


def list_devices() -> dict[str, Any]:
    """The local devices, with their kinds and memory; jax reports an error if there are none."""
    found = jax.local_devices()
    memory = [memory_of([device]) for device in found]
    kinds = [device.device_kind for device in found]
    return {'platform': found[0].platform, 'kinds': kinds, 'memory': memory, 'total': jax.device_count()}


def count() -> int:
    return jax.local_device_count()


def local_devices() -> list[Any]:
    return jax.local_devices()


def all_devices() -> list[Any]:
    """The devices of all processes that have joined."""
    return jax.devices()


def test_device(index: int) -> dict[str, Any]:
    """A product of matrices of small whole numbers on a device, whose result is exact, and a copy."""
    device = jax.local_devices()[index]
    on_cpu = device.platform == 'cpu'
    side, dtype = (768, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    with jax.default_device(device):
        steps = jnp.arange(side)
        a = ((steps[:, None] * 5 + steps[None] * 3) % 7 - 3).astype(dtype)
        b = ((steps[:, None] * 2 + steps[None] * 11) % 5 - 2).astype(dtype)
        product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
        right = _is_exact(a, b, product(a, b))
        x = jnp.zeros((1 << 24 if on_cpu else 1 << 28) // 4, jnp.int32)
        flop = 2 * side**3 / _seconds(product, a, b)
        copied = 2 * x.size * 4 / _seconds(jax.jit(lambda x: x + 1), x)
    kind = device.device_kind
    return {'right': right, 'kind': kind, 'dtype': jnp.dtype(dtype).name, 'flop': flop, 'bandwidth': copied}


def _is_exact(a: Array, b: Array, product: Array) -> bool:
    """Whether some rows and columns of a product are exactly what the host computes."""
    stride = len(a) // SAMPLE
    rows, columns = (np.asarray(x, np.float64) for x in (a[::stride], b[:, ::stride]))
    return np.array_equal(rows @ columns, np.asarray(product[::stride, ::stride], np.float64))


def _seconds(f: Callable[..., Array], *args: Array) -> float:
    """The time of a call, the mean of as many as fit into SECONDS, after a warm-up."""
    f(*args).block_until_ready()
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        for _ in range(4):
            y = f(*args)
        y.block_until_ready()
        calls += 4
    return (time.perf_counter() - begin) / calls


def add_over_devices(devices: Sequence[Any]) -> dict[str, Any]:
    """A sum of arrays over devices, also of several processes; every device must have the right result."""
    n = len(devices)
    mesh = make_mesh({'data': n}, devices=devices)
    rows = NamedSharding(mesh, PartitionSpec('data'))
    numbers = np.repeat(np.arange(1, n + 1, dtype=np.float32)[:, None], SUMMED, axis=1)
    x = jax.make_array_from_callback(numbers.shape, rows, lambda index: numbers[index])
    spec = PartitionSpec('data')
    add = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, 'data'), mesh=mesh, in_specs=spec, out_specs=spec))
    y = add(x)
    expected = n * (n + 1) / 2
    right = all(bool((np.asarray(shard.data) == expected).all()) for shard in y.addressable_shards)
    return {'right': right, 'devices': n, 'bytes': 4 * SUMMED, 'seconds': _seconds(add, x)}
