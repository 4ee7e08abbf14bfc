"""Our own folder of a model: its params as Orbax writes them, its config, and the files of its processor."""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vipllava_jax import __version__
from vipllava_jax.config import Config
from vipllava_jax.folders import CheckpointError, beside, one_line, read_json, write_json
from vipllava_jax.hugging_face import from_hugging_face, to_hugging_face

if TYPE_CHECKING:
    from jax.typing import DTypeLike

T = TypeVar('T')
R = TypeVar('R')
FORMAT = 1
FLOATS = ('float32', 'float16', 'bfloat16')
MARK, PARAMS = 'vipllava.json', 'params'
CHUNK = 1 << 23  # bytes of a leaf that are stored as one
WRITE_AT_ONCE, READ_AT_ONCE = 1 << 28, 1 << 28  # bytes of leaves

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
    total = sum(_size(leaf) for _, leaf in flat(shapes))
    with beside(folder, total, is_checkpoint, overwrite) as new:
        _write_params(new / PARAMS, shapes, flat(params) if leaves is None else leaves)
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
    done, total = 0, sum(map(_size, stored.values()))
    groups = _groups(stored.items(), READ_AT_ONCE, len(stored))
    with _orbax(), ThreadPoolExecutor(2) as pool:
        read = partial(_read_params, folder / PARAMS, dtype, sharding)
        for arrays in ahead(pool, read, groups, 2):
            while arrays:
                path = next(iter(arrays))
                done += _size(stored[path])
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


def ahead(pool: Executor, call: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """The call of each item, in order, `count` of them under way or not yet asked for."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        if len(waiting) == count:
            yield waiting.popleft().result()
        waiting.append(pool.submit(call, item))
    while waiting:
        yield waiting.popleft().result()


def _groups(leaves: Iterable[tuple[str, Any]], size: int, count: int) -> Iterator[dict[str, Any]]:
    """Leaves in order, at most `count` together, of at most `size` bytes or one that alone has more."""
    group: dict[str, Any] = {}
    for path, leaf in leaves:
        if group and (_size(leaf) + sum(map(_size, group.values())) > size or len(group) == count):
            yield group
            group = {}
        group[path] = leaf
    yield group


def _write_params(folder: Path, shapes: dict[str, Any], leaves: Iterable[tuple[str, Any]]) -> None:
    """Has Orbax write the leaves of a tree of shapes as they come; uncompressed, for speed."""
    import jax

    with _orbax() as ocp:
        registry = ocp.type_handlers.create_type_handler_registry(
            (jax.ShapeDtypeStruct, _writer(leaves)), (jax.Array, ocp.type_handlers.ArrayHandler())
        )
        handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
        chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK), shapes)
        try:
            ocp.Checkpointer(handler).save(folder, args=ocp.args.PyTreeSave(shapes, save_args=chunks))
        except (CheckpointError, OSError):
            raise
        except Exception as error:  # Orbax and the storage below it have types of their own
            if code := next((code for code in errno.errorcode if os.strerror(code) in str(error)), None):
                raise OSError(code, os.strerror(code)) from None
            raise CheckpointError(f'{folder}: cannot be written: {one_line(error)}') from None


def _read_params(folder: Path, dtype: Any, sharding: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """Has Orbax read some leaves of a folder, given and returned by path."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (np.ndarray, _patient(handlers.NumpyHandler)), (jax.Array, _patient(handlers.ArrayHandler))
    )
    how: Any = ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
    if sharding is not None:
        how = ocp.ArrayRestoreArgs(restore_type=jax.Array, dtype=dtype, sharding=sharding)
    tree = nested(wanted.items())
    args = ocp.args.PyTreeRestore(tree, jax.tree.map(lambda _: how, tree), partial_restore=True)
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    try:
        found = dict(flat(ocp.Checkpointer(handler).restore(folder.absolute(), args=args)))
    except Exception as error:  # of many types, whatever is the matter
        raise CheckpointError(f'{folder}: damaged or not whole, copy it again: {one_line(error)}') from None
    for path, leaf in wanted.items():
        array = found.get(path)  # Orbax hands back the shape of what it lacks
        if not isinstance(array, (np.ndarray, jax.Array)) or array.shape != leaf.shape:
            raise CheckpointError(f'{folder}: {path} is not the array {list(leaf.shape)} that {MARK} lists')
    jax.block_until_ready(found)  # what is on its way to a device is still held here
    return {path: found[path] for path in wanted}


def _writer(leaves: Iterable[tuple[str, Any]]) -> Any:
    """Orbax's handler of shapes: writes the arrays that come in their stead."""
    import numpy as np
    from orbax.checkpoint.type_handlers import NumpyHandler

    class Unchanging(np.ndarray):
        def __deepcopy__(self, memo: Any) -> Any:  # Orbax would copy an array that may change meanwhile
            return self

    class Writer(NumpyHandler):
        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
            places = {info.name.replace('.', '/'): i for i, info in enumerate(infos)}
            for group in _groups(leaves, WRITE_AT_ONCE, 64):  # a thread for each of them
                futures = []
                for path, array in group.items():
                    i = places[path]
                    value = np.asarray(array).view(Unchanging)
                    futures += await super().serialize([value], [infos[i]], [args[i]])
                # all of them, even if one fails: what outlives its event loop complains on stderr
                if errors := [error for future in futures if (error := _failure(future))]:
                    raise errors[0]
            return []

    return Writer()


def _patient(handler: Any) -> Any:
    """A handler of Orbax's that ends every read it began before it says that one failed."""

    class Patient(handler):
        async def deserialize(self, infos: Any, args: Any = None) -> Any:
            one = super().deserialize
            reads = (one([info], [arg]) for info, arg in zip(infos, args, strict=True))
            found: list[Any] = await asyncio.gather(*reads, return_exceptions=True)
            if errors := [error for error in found if isinstance(error, BaseException)]:
                raise errors[0]
            return [array for arrays in found for array in arrays]

    return Patient()


def _failure(future: Any) -> Exception | None:
    """What went wrong with a write, once it has ended."""
    try:
        future.result()
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax, imported now because that takes seconds, and silent."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger('absl')
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield ocp
    finally:
        logger.setLevel(level)
