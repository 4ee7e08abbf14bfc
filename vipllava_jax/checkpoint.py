"""Saves and loads converted folders: params in Orbax's format, config.json and the files of the processor.

The arrays have checksums. config.json has none, because users may edit it, but it must describe the arrays.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vipllava_jax import __version__, arrays, manifest
from vipllava_jax.arrays import flat, nested, size
from vipllava_jax.config import Config
from vipllava_jax.files import read_bytes, read_json, write_json
from vipllava_jax.folders import new_folder
from vipllava_jax.hugging_face import from_hugging_face, to_hugging_face
from vipllava_jax.manifest import MARK, join_quantized, split_quantized
from vipllava_jax.messages import CheckpointError, listed

if TYPE_CHECKING:
    from jax.typing import DTypeLike

FLOATS = ('float32', 'float16', 'bfloat16')
QUANTIZED = ('int8', 'int4')
PARAMS = 'params'

Progress = Callable[[int, int, str], None]  # bytes done, total bytes, the name of the last array


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder was written by `save`."""
    return (folder / MARK).exists()


def save(
    folder: Path,
    params: dict[str, Any],
    cfg: Config,
    *,
    leaves: Iterable[tuple[str, Any]] | None = None,
    files_from: Path | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Writes params, their config, and the processor's files in `files_from` to a new folder.

    If the params do not fit in memory, `params` holds their shapes, and `leaves` yields their arrays as
    (path, array), in any order; a few are in memory at a time. Returns the sorted paths of arrays that hold
    infinity or NaN. Raises CheckpointError if the params do not match the config or carry an adapter, or if
    the folder cannot be written.
    """
    import jax

    from vipllava_jax.model.vipllava import abstract
    from vipllava_jax.model.weights import LoRA

    if any(isinstance(leaf, LoRA) for _, leaf in flat(params)):
        raise CheckpointError(f'{folder}: the params have an adapter: merge it, or save it by itself')
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    stored = dict(split_quantized(flat(shapes)))
    if odd := sorted(dict(flat(shapes)).keys() ^ dict(flat(abstract(cfg))).keys()):
        names = f'{", ".join(odd[:3])}{", …" if len(odd) > 3 else ""}'
        raise CheckpointError(
            f'{folder}: not the params of the config ({names}); load with fuse=False to save'
        )
    with new_folder(folder, size(stored), is_checkpoint, overwrite) as new:
        source = flat(params) if leaves is None else leaves
        written = arrays.write(new / PARAMS, nested(stored.items()), split_quantized(source))
        write_json(new / 'config.json', to_hugging_face(cfg))
        copy_files(files_from, new)
        checksums = {path: each.checksum for path, each in written.items()}
        manifest.write(new, __version__, dict(flat(shapes)), stored, checksums)
    return tuple(sorted(path for path, each in written.items() if not each.finite))


def restore(
    folder: Path,
    *,
    dtype: 'DTypeLike | None' = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Config]:
    """Loads a converted folder: its params on the device, in `dtype` or the stored dtype, and its config."""
    import jax

    cfg, _ = describe(folder)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return nested(stream(folder, dtype, sharding=sharding, progress=progress)), cfg


def stream(
    folder: Path, dtype: 'DTypeLike | None' = None, *, sharding: Any = None, progress: Progress | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields every leaf of a folder as (path, array): jax.Array if a sharding is given, else numpy.

    A few leaves are in memory at a time. Quantized leaves stay quantized, whatever `dtype` is.
    """
    from vipllava_jax.model.quantized import Quantized

    listed, wanted = manifest.read(folder, __version__), weight_type(dtype)
    stored = _joined(folder, listed.arrays)
    manifest.check_complete(folder, listed)
    done, total = 0, size(stored)
    types = {path: wanted for path, leaf in stored.items() if wanted and not isinstance(leaf, Quantized)}
    found = arrays.read(folder / PARAMS, listed.arrays, types, sharding, listed.checksums)
    for path, array in join_quantized(found):
        done += size(stored[path])
        if progress:
            progress(done, total, path)
        yield path, array


def describe(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The config of a converted folder, and the shape and dtype of each leaf, without reading arrays."""
    from vipllava_jax.model.vipllava import abstract

    cfg, stored = read_config(folder), shapes(folder)
    if cfg.text.layers + cfg.vision.layers > len(stored):  # before allocating anything per layer
        raise CheckpointError(
            f'{folder}: config.json has {cfg.text.layers} and {cfg.vision.layers} layers, but {MARK} lists '
            f'{len(stored)} weights; get a whole copy of both'
        )
    wanted = {(path, leaf.shape) for path, leaf in flat(abstract(cfg))}
    if odd := sorted({path for path, _ in wanted ^ {(path, leaf.shape) for path, leaf in stored.items()}}):
        raise CheckpointError(
            f'{folder}: {MARK} and config.json do not agree on {listed(odd, 5)}; convert it again'
        )
    return cfg, stored


def shapes(folder: Path, dtype: 'DTypeLike | None' = None) -> dict[str, Any]:
    """The shape and dtype of every leaf of a converted folder, by path, without reading arrays.

    The dtype of a leaf is `dtype`, or the stored one if `dtype` is None or the leaf is quantized.
    """
    import jax

    from vipllava_jax.model.quantized import Quantized

    wanted, stored = weight_type(dtype), _joined(folder, manifest.read(folder, __version__).arrays)
    if wanted is None:
        return stored
    changed = {path: leaf for path, leaf in stored.items() if not isinstance(leaf, Quantized)}
    return stored | {path: jax.ShapeDtypeStruct(leaf.shape, wanted) for path, leaf in changed.items()}


def _joined(folder: Path, listed: dict[str, Any]) -> dict[str, Any]:
    """Joins shapes of values and scales into shapes of quantized leaves; other shapes stay as they are."""
    from vipllava_jax.model.quantized import Quantized

    try:
        stored = dict(join_quantized(listed.items()))
        for path, leaf in stored.items():
            if isinstance(leaf, Quantized):
                _check_quantized(path, leaf)
            elif leaf.dtype.name not in FLOATS:
                raise ValueError(f'{path} is of type {leaf.dtype.name}')
    except ValueError as error:
        raise CheckpointError(f'{folder / MARK}: lists no params ({error}); convert it again') from None
    return stored


def _check_quantized(path: str, leaf: Any) -> None:
    """Raises ValueError unless values and scale have the shapes and dtypes of one quantized weight."""
    from vipllava_jax.model.llama import summed

    found = (*((x.shape, x.dtype.name) for x in (leaf.values, leaf.scale)),)
    try:
        whole = found == _quantized_shapes(leaf.shape, summed(path), leaf.dtype.name)
    except (ValueError, TypeError, IndexError, ArithmeticError):  # from impossible shapes
        whole = False
    if not whole:
        raise ValueError(f'{path}: its values and scale are not of one weight')


@lru_cache
def _quantized_shapes(shape: tuple[int, ...], axes: int, how: str) -> tuple[tuple[Any, str], ...]:
    """The shapes and dtypes of the values and scale of a quantized weight with `axes` contracted axes."""
    import jax

    from vipllava_jax.model.quantized import quantize

    weight = jax.ShapeDtypeStruct(shape, 'float32')
    found = jax.eval_shape(partial(quantize, summed=axes, kind=how), weight)
    return (*((x.shape, x.dtype.name) for x in (found.values, found.scale)),)


def read_config(folder: Path) -> Config:
    """The Config of a converted folder or a PyTorch checkpoint; raises CheckpointError if it is not valid."""
    generation = folder / 'generation_config.json'
    data = read_json(folder / 'config.json')
    try:
        return from_hugging_face(data, read_json(generation) if generation.exists() else None)
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f'{folder / "config.json"}: {error}') from None


def copy_files(source: Path | None, target: Path) -> None:
    """Copies generation_config.json and the files of the processor to another folder, if they exist."""
    from vipllava_jax.inputs.processor import Processor
    from vipllava_jax.inputs.processor_files import PROCESSOR_FILES

    if source is None:
        return
    from vipllava_jax.inputs.tokenizer_json import MAX_BYTES  # the largest of the files

    names = ['generation_config.json']
    try:
        Processor.load(source).save(target)
    except (ValueError, OSError, ImportError):  # incomplete: copy the files that exist
        names += PROCESSOR_FILES
    for name in names:
        if (source / name).exists():
            (target / name).write_bytes(read_bytes(source / name, MAX_BYTES))


def weight_type(dtype: 'DTypeLike | None') -> Any:
    """`dtype` as a numpy dtype, or None for the stored one; raises CheckpointError if it is not in FLOATS."""
    import jax.numpy as jnp

    if dtype is None:
        return None
    with contextlib.suppress(TypeError):
        if jnp.dtype(dtype).name in FLOATS:
            return jnp.dtype(dtype)
    raise CheckpointError(f'{dtype}: not a type of weights, only {", ".join(FLOATS)}')


def quantized(
    leaves: Iterable[tuple[str, Any]], how: str | None, dtype: 'DTypeLike | None' = None
) -> Iterable[tuple[str, Any]]:
    """Leaves or their shapes -> the same, with the decoder's large weights quantized and others in `dtype`.

    `how` is 'int8', 'int4' or None, which leaves them unchanged. Raises CheckpointError for other values.
    """
    if how not in (None, *QUANTIZED):
        raise CheckpointError(f'{how}: weights can be quantized to {", ".join(QUANTIZED)}')
    return _quantized(leaves, how, weight_type(dtype)) if how else leaves


def _quantized(leaves: Iterable[tuple[str, Any]], how: str, dtype: Any) -> Iterator[tuple[str, Any]]:
    import jax

    from vipllava_jax.model.llama import summed
    from vipllava_jax.model.quantized import Quantized, quantize
    from vipllava_jax.model.weights import LoRA

    @partial(jax.jit, static_argnames='axes')
    def smaller(w: Any, axes: int) -> Any:
        return quantize(w, axes, how) if axes else w.astype(dtype or w.dtype)

    for path, leaf in leaves:
        w = leaf.base if isinstance(leaf, LoRA) else leaf
        if isinstance(w, jax.ShapeDtypeStruct):
            w = jax.eval_shape(partial(smaller, axes=summed(path)), w)
        elif not isinstance(w, Quantized):
            w = smaller(w, axes=summed(path))
        yield path, dataclasses.replace(leaf, base=w) if isinstance(leaf, LoRA) else w
