"""Our own folder of a model: its params as Orbax writes them, its config, and the files of its processor."""

import contextlib
import errno
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vipllava_jax import __version__
from vipllava_jax.config import Config
from vipllava_jax.folders import CheckpointError, beside, read_json, write_json
from vipllava_jax.hugging_face import from_hugging_face, to_hugging_face

if TYPE_CHECKING:
    from jax.typing import DTypeLike

FORMAT = 1
MARK, PARAMS = 'vipllava.json', 'params'
CHUNK = 1 << 23  # bytes of a leaf that are stored as one
AT_ONCE = 1 << 28  # bytes of leaves that are written or read together

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
    in any order, each of which can be forgotten when the next one comes.
    """
    manifest = {path: (leaf.dtype.name, list(leaf.shape)) for path, leaf in flat(params)}
    total = sum(_size(leaf) for _, leaf in flat(params))
    with beside(folder, total, is_checkpoint, overwrite) as partial:
        _write_params(partial / PARAMS, params, leaves)
        write_json(partial / 'config.json', to_hugging_face(cfg))
        copy_files(files_from, partial)
        write_json(partial / MARK, {'format': FORMAT, 'version': __version__, 'params': manifest})


def restore(
    folder: Path, *, dtype: 'DTypeLike | None' = None, progress: Progress | None = None
) -> tuple[dict[str, Any], Config]:
    """A folder of ours -> its params on the device, in `dtype` or as they were saved, and its config."""
    import jax

    cfg, _ = describe(folder)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return nested(stream(folder, dtype=dtype, sharding=sharding, progress=progress)), cfg


def stream(
    folder: Path, *, dtype: 'DTypeLike | None' = None, sharding: Any = None, progress: Progress | None = None
) -> Iterator[tuple[str, Any]]:
    """Every leaf of a folder as (path, array), a few read at once: numpy's, or jax's with a sharding."""
    stored = shapes(folder)
    done, total = 0, sum(map(_size, stored.values()))
    for group in _groups(stored.items()):
        arrays = dict(flat(_read_params(folder / PARAMS, nested(group.items()), dtype, sharding)))
        for path, leaf in group.items():
            if arrays[path].shape != leaf.shape:
                raise CheckpointError(
                    f'{folder}: {path} is {list(arrays[path].shape)}, but {MARK} says {list(leaf.shape)}'
                )
            done += _size(leaf)
            if progress:
                progress(done, total, path)
            yield path, arrays.pop(path)


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
    """Copies what travels with the weights, as far as it is there."""
    from vipllava_jax.inputs.processor import FILES

    for name in ('generation_config.json', *FILES):
        if source is not None and (source / name).exists():
            shutil.copyfile(source / name, target / name)


def nested(leaves: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """('llama/norm/w', leaf), … -> {'llama': {'norm': {'w': leaf}}, …}."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves:
        *parents, last = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def flat(tree: dict[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """{'llama': {'norm': {'w': leaf}}, …} -> ('llama/norm/w', leaf), …."""
    for name, node in tree.items():
        if isinstance(node, dict):
            yield from flat(node, f'{prefix}{name}/')
        else:
            yield prefix + name, node


def _size(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def _groups(leaves: Iterable[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leaves in order, as many at a time as have AT_ONCE bytes, or one that alone has more."""
    group: dict[str, Any] = {}
    size = 0
    for path, leaf in leaves:
        if group and size + _size(leaf) > AT_ONCE:
            yield group
            group, size = {}, 0
        group[path] = leaf
        size += _size(leaf)
    yield group


def _write_params(folder: Path, params: dict[str, Any], leaves: Iterable[tuple[str, Any]] | None) -> None:
    """Has Orbax write arrays, or shapes whose arrays come later; uncompressed, for speed."""
    import jax

    with _orbax(folder.parent) as ocp:
        handler = ocp.PyTreeCheckpointHandler(
            use_compression=False,
            **({} if leaves is None else {'type_handler_registry': _registry(leaves)}),
        )
        chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK), params)
        ocp.Checkpointer(handler).save(folder, args=ocp.args.PyTreeSave(params, save_args=chunks))


def _read_params(folder: Path, shapes: dict[str, Any], dtype: Any, sharding: Any) -> dict[str, Any]:
    """Has Orbax read some leaves of a folder."""
    import jax
    import numpy as np

    with _orbax(folder.parent) as ocp:
        how: Any = ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
        if sharding is not None:
            how = ocp.ArrayRestoreArgs(restore_type=jax.Array, dtype=dtype, sharding=sharding)
        args = ocp.args.PyTreeRestore(
            item=shapes, restore_args=jax.tree.map(lambda _: how, shapes), partial_restore=True
        )
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(folder, args=args)


@contextlib.contextmanager
def _orbax(folder: Path) -> Iterator[Any]:
    """Orbax, imported now because that takes seconds, silent, and with errors of one line."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger('absl')
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield ocp
    except (CheckpointError, OSError):
        raise
    except Exception as error:
        if 'No space left' in str(error):
            raise OSError(errno.ENOSPC, 'No space left') from None
        told = ' '.join(str(error).split())[:300]
        raise CheckpointError(
            f'{folder}: the params are damaged or not whole ({told}); convert or copy it again'
        ) from None
    finally:
        logger.setLevel(level)


def _registry(leaves: Iterable[tuple[str, Any]]) -> Any:
    """Orbax's handlers with one for shapes, which writes the arrays that come in their stead."""
    import jax
    import numpy as np
    from orbax.checkpoint import type_handlers

    class Writer(type_handlers.NumpyHandler):
        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
            places = {info.name.replace('.', '/'): i for i, info in enumerate(infos)}
            for group in _groups(leaves):
                order = [places[path] for path in group]
                arrays = [np.asarray(array) for array in group.values()]
                for future in await super().serialize(
                    arrays, [infos[i] for i in order], [args[i] for i in order]
                ):
                    future.result()
            return []

    return type_handlers.create_type_handler_registry(
        (jax.ShapeDtypeStruct, Writer()), (jax.Array, type_handlers.ArrayHandler())
    )
