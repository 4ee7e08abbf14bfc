"""Our own folder of a model: its params as Orbax writes them, its config, and the files of its processor."""

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vipllava_jax import __version__, arrays
from vipllava_jax.arrays import flat, nested, size
from vipllava_jax.config import Config
from vipllava_jax.folders import CheckpointError, beside, read_json, write_json
from vipllava_jax.hugging_face import from_hugging_face, to_hugging_face

if TYPE_CHECKING:
    from jax.typing import DTypeLike

FORMAT = 1
FLOATS = ('float32', 'float16', 'bfloat16')
MARK, PARAMS = 'vipllava.json', 'params'

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, the name of what was just done


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is one of ours."""
    return (folder / MARK).exists()


def save(
    folder: Path,
    params: dict[str, Any],
    cfg: Config,
    *,
    leaves: Iterable[tuple[str, Any]] | None = None,
    files_from: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Params and their config -> a new folder, with the processor's files of another.

    Params too large to be held are given as shapes, and `leaves` brings their arrays as (path, array),
    in any order; a few are held at a time. Raises CheckpointError for params that are not the config's.
    """
    import jax

    from vipllava_jax.model.vipllava import abstract

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    manifest = {path: (leaf.dtype.name, list(leaf.shape)) for path, leaf in flat(shapes)}
    if odd := sorted(manifest.keys() ^ dict(flat(abstract(cfg))).keys()):
        told = f'{", ".join(odd[:3])}{", …" if len(odd) > 3 else ""}'
        raise CheckpointError(
            f'{folder}: not the params of the config ({told}); load with fuse=False to save'
        )
    total = sum(size(leaf) for _, leaf in flat(shapes))
    with beside(folder, total, is_checkpoint, overwrite) as new:
        arrays.write(new / PARAMS, shapes, flat(params) if leaves is None else leaves)
        write_json(new / 'config.json', to_hugging_face(cfg))
        copy_files(files_from, new)
        write_json(new / MARK, {'format': FORMAT, 'version': __version__, 'params': manifest})


def restore(
    folder: Path, *, dtype: 'DTypeLike | None' = None, progress: Progress | None = None
) -> tuple[dict[str, Any], Config]:
    """A folder of ours -> its params on the device, in `dtype` or as they were saved, and its config."""
    import jax

    dtype = weight_type(dtype)
    cfg, _ = describe(folder)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return nested(stream(folder, dtype=dtype, sharding=sharding, progress=progress)), cfg


def stream(
    folder: Path, *, dtype: 'DTypeLike | None' = None, sharding: Any = None, progress: Progress | None = None
) -> Iterator[tuple[str, Any]]:
    """Every leaf of a folder as (path, array), a few read at once: numpy's, or jax's with a sharding."""
    stored = shapes(folder)
    done, total = 0, sum(map(size, stored.values()))
    for path, array in arrays.read(folder / PARAMS, stored, weight_type(dtype), sharding):
        done += size(stored[path])
        if progress:
            progress(done, total, path)
        yield path, array


def describe(folder: Path) -> tuple[Config, dict[str, Any]]:
    """The config of a folder of ours, and the shape and type of each leaf by its path, nothing else read."""
    from vipllava_jax.model.vipllava import abstract

    cfg, stored = read_config(folder), shapes(folder)
    wanted = {(path, leaf.shape) for path, leaf in flat(abstract(cfg))}
    if odd := wanted ^ {(path, leaf.shape) for path, leaf in stored.items()}:
        told = ', '.join(sorted({path for path, _ in odd}))
        raise CheckpointError(f'{folder}: {MARK} and config.json do not agree on {told}; convert it again')
    return cfg, stored


def shapes(folder: Path) -> dict[str, Any]:
    """The shape and type of every leaf of a folder of ours, by its path; its params are not opened."""
    import jax
    import jax.numpy as jnp

    mark = read_json(folder / MARK)
    if mark.get('format') != FORMAT:
        raise CheckpointError(
            f'{folder / MARK}: format {mark.get("format")!r} of vipllava-jax {mark.get("version")}; this is '
            f'{__version__} and reads format {FORMAT}: upgrade it, or convert the checkpoint again'
        )
    try:
        listed = mark['params'].items()
        return {path: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for path, (dtype, shape) in listed}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{folder / MARK}: lists no params ({error}); convert it again') from None


def read_config(folder: Path) -> Config:
    """The config of a folder with a config.json, ours or a PyTorch checkpoint's."""
    generation = folder / 'generation_config.json'
    data = read_json(folder / 'config.json')
    try:
        return from_hugging_face(data, read_json(generation) if generation.exists() else None)
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f'{folder / "config.json"}: {error}') from None


def copy_files(source: Path | None, target: Path) -> None:
    """What travels with the weights, the processor in files that need no others, as far as it is there."""
    from vipllava_jax.inputs.processor import FILES, Processor

    if source is None:
        return
    names = ['generation_config.json']
    try:
        Processor.load(source).save(target)
    except (ValueError, OSError, ImportError):  # not whole: what there is of it may still be of use
        names += FILES
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def weight_type(dtype: 'DTypeLike | None') -> Any:
    """The numpy type that a user asks weights to be in, or None for their own."""
    import jax.numpy as jnp

    if dtype is None:
        return None
    with contextlib.suppress(TypeError):
        if jnp.dtype(dtype).name in FLOATS:
            return jnp.dtype(dtype)
    raise CheckpointError(f'{dtype}: not a type of weights, only {", ".join(FLOATS)}')
