"""Measures the device's limits: the memory bandwidth of a copy and the rate of a matrix product."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vipllava_jax.model.cost import Work
from vipllava_jax.model.weights import einsum

AT_ONCE = 8  # calls per time measurement, which hides the launch overhead


class Ceilings(NamedTuple):
    """The rates measured on this device."""

    bandwidth: float  # bytes read and written per second
    matmul: float  # operations per second
    dtype: str  # of the matrices in the product

    def floor(self, work: Work) -> float:
        """The minimum time for the work, in seconds, at these rates."""
        return max(work.bytes / self.bandwidth, work.flop / self.matmul)

    def bound(self, work: Work) -> str:
        """Which rate determines the minimum time: 'bandwidth' or 'matmul'."""
        return 'bandwidth' if work.bytes / self.bandwidth > work.flop / self.matmul else 'matmul'


def measure_ceilings(dtype: Any, repeats: int = 10) -> Ceilings:
    """Measures both rates, as medians, on random numbers in buffers several times larger than any cache."""
    size = 1 << 28 if jax.default_backend() == 'cpu' else 1 << 30
    x = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
    copy = _seconds(jax.jit(jnp.copy), (x,), repeats)
    inverse = _seconds(jax.jit(jnp.invert, donate_argnums=0), (x,), repeats)
    return Ceilings(2 * size / min(copy, inverse), matmul(dtype, repeats), jnp.dtype(dtype).name)


def matmul(dtype: Any, repeats: int = 10) -> float:
    """Measures a product of two large matrices; returns operations per second."""
    side = 1024 if jax.default_backend() == 'cpu' else 8192
    a, b = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in (1, 2))
    product = _seconds(jax.jit(lambda a, b: einsum('ij,jk->ik', a, b)), (a, b), repeats)
    return 2 * side**3 / product


def _seconds(f: Callable[..., Array], args: tuple[Array, ...], repeats: int) -> float:
    """The median time per call in seconds; each call takes the result of the previous one."""
    y, *rest = args
    samples = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        for _ in range(AT_ONCE):
            y = f(y, *rest)
        y.block_until_ready()
        samples.append((time.perf_counter() - begin) / AT_ONCE)
    return median(samples[1:])
