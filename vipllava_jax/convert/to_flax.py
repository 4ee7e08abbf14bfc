"""Converts PyTorch checkpoints to Flax params, leaf by leaf: on a device, or in a folder."""

import functools
import mmap
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

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
from vipllava_jax.convert.table import Leaf, Sizes, rearrange_axes
from vipllava_jax.convert.tensors import READABLE, Tensor, read_tensor
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
ProgramKey = tuple[str, str, Sizes]  # the dtype in the file, the layout and its sizes: one program for each


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
    sharding: Sharding | None = None,
    progress: Progress | None = None,
    at_once: int = 3 << 29,
) -> Iterator[tuple[str, Array]]:
    """Every leaf as (path, array), in the target dtype and layout, in the order of the files.

    A tensor is copied to the device as it is in the file, through one of a few buffers of `at_once` bytes in
    total; the device transposes and casts it. Several threads copy, because that takes the most time.
    """
    sharding = sharding or default_sharding()
    total, done = sum(tensor.nbytes for _, tensor in plan.pairs), 0
    largest = max(tensor.span for _, tensor in plan.pairs)
    threads = max(1, min(THREADS, at_once // largest))
    buffers: SimpleQueue[memoryview] = SimpleQueue()
    for _ in range(threads):  # page-aligned, so that a CPU device uses them without a copy
        buffers.put(memoryview(mmap.mmap(-1, largest, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))

    def load(pair: tuple[Leaf, Tensor]) -> Array:
        tensor = pair[1]
        buffer = buffers.get()
        try:
            uploaded = jax.device_put(read_tensor(tensor, buffer), sharding)
            # the buffer is in use until then: for the transfer, or on a CPU as `uploaded` itself
            return programs[_program_key(*pair)].result()(uploaded).block_until_ready()
        finally:
            buffers.put(buffer)

    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(THREADS) as compilers:
        keys = dict.fromkeys(_program_key(*pair) for pair in plan.pairs)  # in the order of their first use
        programs = {key: compilers.submit(_program, *key, dtype, sharding) for key in keys}
        arrays = map_ahead(pool, load, plan.pairs, threads)
        for (leaf, tensor), array in zip(plan.pairs, arrays, strict=True):
            done += tensor.nbytes
            if progress:
                progress(done, total, leaf.name)
            yield leaf.path, array


def _program_key(leaf: Leaf, tensor: Tensor) -> ProgramKey:
    return tensor.dtype, leaf.layout, leaf.sizes


def _program(stored: str, layout: str, sizes: Sizes, dtype: DTypeLike | None, sharding: Sharding) -> Any:
    """The compiled `rearrange` for tensors of one dtype and layout."""
    shape = Leaf('', '', layout, sizes).shapes[0]
    x = jax.ShapeDtypeStruct(shape, READABLE[stored], sharding=sharding)
    devices: set[Any] = sharding.device_set
    on_gpu = any(device.platform == 'gpu' for device in devices)
    # autotuning takes longer than it could save
    options: Any = {'xla_gpu_autotune_level': '0'} if on_gpu else None
    return rearrange.lower(x, layout, sizes, jnp.dtype(dtype or stored)).compile(options)


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


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def rearrange(x: Array, layout: str, sizes: Sizes, dtype: DTypeLike) -> Array:
    """`rearrange_axes` on the device, and a cast; the result never shares memory with x."""
    # without the copy, jax could return x if nothing changes, and the result would share the buffer's memory
    return jnp.copy(rearrange_axes(x, layout, dict(sizes)).astype(dtype))
