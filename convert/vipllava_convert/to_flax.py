"""From a PyTorch checkpoint to Flax params: leaf by leaf onto a device, or into a folder of our own."""

import functools
import mmap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from vipllava_convert.table import Plan, arrange, fit
from vipllava_convert.tensors import READABLE, read
from vipllava_convert.torch_files import open_checkpoint
from vipllava_jax.checkpoint import Progress, nested, read_config, save, weight_type
from vipllava_jax.folders import apart


class Report(NamedTuple):
    """What a conversion did."""

    tensors: int
    size: int  # bytes read
    seconds: float
    unused: tuple[str, ...]  # tensors of the source that a forward pass has no use for
    notes: tuple[str, ...] = ()  # what is different from the source, in sentences


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
            array = rearranged(uploaded, leaf.layout, leaf.sizes, jnp.dtype(dtype or uploaded.dtype))
            # until here a transfer may be under way, and on a CPU `uploaded` is the buffer itself
            array.block_until_ready()
            done += tensor.nbytes
            if progress:
                progress(done, total, leaf.name)
            yield leaf.path, array


def convert(
    source: Path,
    target: Path,
    *,
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """A PyTorch checkpoint's folder -> a new folder of our own, its tokenizer and processor files included.

    The params are in `dtype`, or in the file's types. Raises CheckpointError, before any long work where
    that is possible, and leaves nothing behind then; the source is only read.
    """
    apart(source, target)
    dtype = weight_type(dtype)
    began = time.monotonic()
    what = plan(source)
    shapes = nested(
        (leaf.path, jax.ShapeDtypeStruct(leaf.shapes[1], jnp.dtype(dtype or READABLE[tensor.dtype])))
        for leaf, tensor in what.pairs
    )
    leaves = stream(what, dtype, jax.local_devices(backend='cpu')[0], progress)
    save(target, shapes, what.cfg, leaves=leaves, files_from=source, overwrite=overwrite)
    size = sum(tensor.nbytes for _, tensor in what.pairs)
    return Report(len(what.pairs), size, time.monotonic() - began, what.unused)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def rearranged(x: Array, layout: str, sizes: tuple[tuple[str, int], ...], dtype: DTypeLike) -> Array:
    """`arrange` on the device, and a cast; the result never shares memory with x."""
    # without the copy jax might hand back its argument where nothing changes, and with it the buffer
    return jnp.copy(arrange(x, layout, dict(sizes)).astype(dtype))
