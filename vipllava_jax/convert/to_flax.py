"""Converts PyTorch checkpoints to Flax params, leaf by leaf: on a device, or in a folder."""

import mmap
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Sharding
from jax.typing import DTypeLike

from vipllava_jax.arrays import nested
from vipllava_jax.checkpoint import check_only_model_files, is_checkpoint, save
from vipllava_jax.convert import adapters
from vipllava_jax.convert.adapted import with_options
from vipllava_jax.convert.foreign_quantization import refuse_by_config, refuse_by_names
from vipllava_jax.convert.matching import ConversionPlan, match_tensors
from vipllava_jax.convert.shards import LocalParts, compile_program, local_parts
from vipllava_jax.convert.tensors import READABLE
from vipllava_jax.convert.torch_files import open_checkpoint
from vipllava_jax.files import read_json
from vipllava_jax.folders import check_apart
from vipllava_jax.hugging_face import read_config
from vipllava_jax.progress_bar import Progress
from vipllava_jax.sharding import default_sharding, on_cpu
from vipllava_jax.threads import map_ahead
from vipllava_jax.weight_options import WeightOptions

THREADS = 6
AT_ONCE = 1 << 28  # bytes of buffers, if the leaves are in the same memory (on a CPU)


class Report(NamedTuple):
    """What a conversion did."""

    tensors: int
    size: int  # bytes read
    seconds: float
    unused: tuple[str, ...]  # tensors of the source that a forward pass does not use
    notes: tuple[str, ...] = ()  # differences from the source, in sentences
    warnings: tuple[str, ...] = ()  # weights that hold NaN or infinity


def plan_conversion(source: Path) -> ConversionPlan:
    """The folder of a PyTorch checkpoint -> what a conversion reads; checks all but the tensors' values."""
    content = read_json(source / 'config.json', optional=True)
    refuse_by_config(content, source)
    cfg = read_config(source, content)
    tensors = open_checkpoint(source)
    refuse_by_names(tensors, str(source))
    return match_tensors(tensors, cfg, str(source))


def shapes(plan: ConversionPlan, dtype: DTypeLike | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape and dtype of each leaf of `stream`, by its path, without reading tensors."""
    return {
        leaf.path: jax.ShapeDtypeStruct(leaf.shapes[1], jnp.dtype(dtype or READABLE[tensor.dtype]))
        for leaf, tensor in plan.pairs
    }


def stream(
    plan: ConversionPlan,
    dtype: DTypeLike | None = None,
    *,
    sharding: Sharding | Mapping[str, Sharding] | None = None,
    progress: Progress | None = None,
    at_once: int = 3 << 29,
) -> Iterator[tuple[str, Array]]:
    """Every leaf as (path, array), in the target dtype and layout, in the order of the files.

    `sharding` is one for all leaves, or a mapping by path; the default is the first local device. Threads
    read the bytes that the local devices need into buffers of `at_once` bytes in total, and copy them to the
    devices, which transpose and cast them.
    """
    sharding = sharding or default_sharding()
    total, done = sum(tensor.nbytes for _, tensor in plan.pairs), 0
    largest = max(tensor.span for _, tensor in plan.pairs)
    threads = max(1, min(THREADS, at_once // largest))
    buffers = _buffers(threads, largest)
    parts_of_leaves = [
        local_parts(leaf, tensor, sharding if isinstance(sharding, Sharding) else sharding[leaf.path])
        for leaf, tensor in plan.pairs
    ]

    def load(parts: LocalParts) -> Array:
        buffer = buffers.get()
        try:
            return parts.read(buffer, programs[parts.key])
        finally:
            buffers.put(buffer)

    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(THREADS) as compilers:
        keys = dict.fromkeys(parts.key for parts in parts_of_leaves)  # in the order of their first use
        programs = {key: compilers.submit(compile_program, key, dtype) for key in keys}
        arrays = map_ahead(pool, load, parts_of_leaves, threads)
        for (leaf, tensor), array in zip(plan.pairs, arrays, strict=True):
            done += tensor.nbytes
            if progress:
                progress(done, total, leaf.name)
            yield leaf.path, array


def _buffers(count: int, size: int) -> SimpleQueue[memoryview]:
    """Buffers of `size` bytes, page-aligned, so that a CPU device uses them without a copy."""
    buffers: SimpleQueue[memoryview] = SimpleQueue()
    for _ in range(count):
        buffers.put(memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))
    return buffers


def convert(
    source: Path,
    target: Path,
    *,
    dtype: DTypeLike | None = None,
    quantize: str | None = None,
    adapter: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Converts a PyTorch checkpoint's folder to a new folder, with its tokenizer and processor files.

    The params are in `dtype`, or in the file's types; with `quantize` the decoder's large weights are 'int8'
    or 'int4' instead. The adapter in the folder `adapter` is merged into them. The source is not changed.
    Raises CheckpointError, before any long work where possible, and then leaves nothing behind.
    """
    for read_from in (source, *([adapter] if adapter else [])):
        check_apart(Path(read_from), target)
    if overwrite and is_checkpoint(target):
        check_only_model_files(target)
    options = WeightOptions(dtype=dtype, quantize=quantize, adapter=adapter)
    began = time.monotonic()
    plan = plan_conversion(source)
    pairs = adapters.read_adapter(adapter, plan.cfg) if adapter else None
    stored = stream(plan, options.dtype_to_read, sharding=on_cpu(), progress=progress, at_once=AT_ONCE)
    expected = with_options(shapes(plan, options.dtype_to_read).items(), options, pairs)
    leaves = with_options(stored, options, pairs)
    not_finite_paths = save(
        target, nested(expected), plan.cfg, leaves=leaves, files_from=source, overwrite=overwrite
    )
    size = sum(tensor.nbytes for _, tensor in plan.pairs)
    names = {leaf.path: f'{leaf.name} ({leaf.path})' for leaf, _ in plan.pairs}
    paths = (path.removesuffix('/scale') for path in not_finite_paths)
    warnings = not_finite((names.get(path, path) for path in paths), options.dtype)
    return Report(len(plan.pairs), size, time.monotonic() - began, plan.unused, warnings=warnings)


def not_finite(names: Iterable[str], dtype: DTypeLike | None) -> tuple[str, ...]:
    """A warning for each written weight that holds NaN or infinity."""
    reason = '; numbers above 65504 are infinite in float16' if dtype == jnp.float16 else ''
    return (*(f'{name} holds NaN or infinity{reason}' for name in names),)
