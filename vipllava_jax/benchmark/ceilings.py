"""What the device can do at best: how fast memory is copied, how fast matrices are multiplied."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vipllava_jax.benchmark.cost import Work
from vipllava_jax.model.weights import einsum

AT_ONCE = 8  # calls between two looks at the clock, so that their launch does not count


class Ceilings(NamedTuple):
    """Rates measured on this device."""

    bandwidth: float  # bytes a second, those read and those written
    matmul: float  # operations a second
    dtype: str  # of the matrices

    def floor(self, work: Work) -> float:
        """The seconds that the work takes at least."""
        return max(work.bytes / self.bandwidth, work.flop / self.matmul)

    def bound(self, work: Work) -> str:
        """Which of the two rates that is."""
        return 'bandwidth' if work.bytes / self.bandwidth > work.flop / self.matmul else 'matmul'


def measure(dtype: Any, repeats: int = 10) -> Ceilings:
    """Both rates, medians, on random numbers, over buffers several times any cache."""
    size = 1 << 28 if jax.default_backend() == 'cpu' else 1 << 30
    x = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
    copy = _seconds(jax.jit(jnp.copy), (x,), repeats)
    inverse = _seconds(jax.jit(jnp.invert, donate_argnums=0), (x,), repeats)
    return Ceilings(2 * size / min(copy, inverse), matmul(dtype, repeats), jnp.dtype(dtype).name)


def matmul(dtype: Any, repeats: int = 10) -> float:
    """Operations a second in a product of large matrices."""
    side = 1024 if jax.default_backend() == 'cpu' else 8192
    a, b = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in (1, 2))
    product = _seconds(jax.jit(lambda a, b: einsum('ij,jk->ik', a, b)), (a, b), repeats)
    return 2 * side**3 / product


def _seconds(f: Callable[..., Array], args: tuple[Array, ...], repeats: int) -> float:
    """The median time of a call, each fed with the result of the one before."""
    y, *rest = args
    samples = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        for _ in range(AT_ONCE):
            y = f(y, *rest)
        y.block_until_ready()
        samples.append((time.perf_counter() - begin) / AT_ONCE)
    return median(samples[1:])
