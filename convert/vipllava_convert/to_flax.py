"""From a PyTorch checkpoint to Flax params: leaf by leaf onto a device, or into a folder of our own."""

import functools
import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from vipllava_convert.table import Plan, arrange, fit
from vipllava_convert.tensors import read
from vipllava_convert.torch_files import open_checkpoint

from vipllava_jax.checkpoint import read_config

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, the name of what was just done


def plan(source: Path) -> Plan:
    """What there is to read in a PyTorch checkpoint's folder, all of it checked but the bytes themselves."""
    return fit(open_checkpoint(source), read_config(source), str(source))


def stream(
    plan: Plan, dtype: DTypeLike | None = None, device: Any = None, progress: Progress | None = None
) -> Iterator[tuple[str, Array]]:
    """Every leaf as (path, array on the device), in the target dtype and layout, in the order of the files.

    A tensor is read into one of two buffers while the one before it is uploaded as it lies in the file;
    the device transposes and casts it.
    """
    device = device or jax.local_devices()[0]
    total, done = sum(tensor.nbytes for _, tensor in plan.pairs), 0
    largest = max(tensor.span for _, tensor in plan.pairs)
    buffers = [
        memoryview(mmap.mmap(-1, largest)) for _ in range(2)
    ]  # page-aligned, so that a CPU need not copy
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, plan.pairs[0][1], buffers[0])
        for i, (leaf, tensor) in enumerate(plan.pairs):
            uploaded = jax.device_put(ahead.result(), device)
            if i + 1 < len(plan.pairs):
                ahead = reader.submit(read, plan.pairs[i + 1][1], buffers[(i + 1) % 2])
            array = _arranged(uploaded, leaf.layout, leaf.sizes, jnp.dtype(dtype or uploaded.dtype))
            # until here a transfer may be under way, and on a CPU `uploaded` is the buffer itself
            array.block_until_ready()
            done += tensor.nbytes
            if progress:
                progress(done, total, leaf.name)
            yield leaf.path, array


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _arranged(x: Array, layout: str, sizes: tuple[tuple[str, int], ...], dtype: DTypeLike) -> Array:
    # without the copy, a layout that changes nothing would hand back its argument, and so the buffer
    return jnp.copy(arrange(x, layout, dict(sizes)).astype(dtype))
