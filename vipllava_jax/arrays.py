"""Writes and reads a tree of arrays in Orbax's format, a few arrays at a time."""

import contextlib
import errno
import logging
import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.messages import CheckpointError, one_line
from vipllava_jax.pods import process_count, process_index
from vipllava_jax.storage import Reading, Storage, is_raw
from vipllava_jax.threads import map_ahead

AT_ONCE = 1 << 27  # bytes of arrays that are in flight when writing, or in one group when reading
READERS = min(8, os.cpu_count() or 1)  # threads that each read AT_ONCE bytes and copy them to the device
CHECKERS = 4  # threads that verify checksums while others read


class Written(NamedTuple):
    """The checksum of a written array, and whether its values are finite."""

    checksum: str
    finite: bool


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


def size(leaf: Any) -> int:
    """The size in bytes of an array, a shape, or a tree of them."""
    import jax

    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(leaf))


def write_arrays(
    folder: Path, shapes: dict[str, Any], leaves: Iterable[tuple[str, Any]]
) -> dict[str, Written]:
    """Writes the arrays of a tree of shapes, given as (path, array) in any order.

    Each array is stored uncompressed and as a single chunk, so that it is written without a copy: copies of
    several chunks would stay in the allocator's memory, more of it with more cores. Returns, by path, the
    checksum of the bytes that were written and whether they are finite.
    """
    import jax

    written: dict[str, Future[Written]] = {}
    with orbax() as ocp, ThreadPoolExecutor(2) as pool:
        registry = ocp.type_handlers.create_type_handler_registry(
            (jax.ShapeDtypeStruct, _writer(leaves, pool, written)),
            (jax.Array, ocp.type_handlers.ArrayHandler()),
        )
        options: Any = {}
        if process_count() > 1:  # otherwise this process would wait for the others
            alone = {process_index()}
            options['multiprocessing_options'] = ocp.options.MultiprocessingOptions(
                primary_host=process_index(), active_processes=alone, barrier_sync_key_prefix='alone'
            )
        handler = ocp.PyTreeCheckpointHandler(
            use_compression=False, type_handler_registry=registry, **options
        )
        with writing(folder):
            ocp.Checkpointer(handler, **options).save(folder, args=ocp.args.PyTreeSave(shapes))
        return {path: future.result() for path, future in written.items()}


def _inspected(array: Any) -> Written:
    from vipllava_jax.integrity import checksum, is_finite

    return Written(checksum(array), is_finite(array))


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns errors of Orbax and its storage into OSError, if they name a system error, or CheckpointError."""
    try:
        yield
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # Orbax raises errors of many types
        if code := next((code for code in errno.errorcode if os.strerror(code) in str(error)), None):
            raise OSError(code, os.strerror(code), str(folder)) from None
        if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
            raise  # out of memory
        raise CheckpointError(f'{folder}: cannot be written: {one_line(error)}') from None


def _writer(leaves: Iterable[tuple[str, Any]], pool: Executor, written: dict[str, Future[Written]]) -> Any:
    """An Orbax handler for shapes, which writes the arrays of `leaves`; the pool computes their checksums."""
    import numpy as np
    from orbax.checkpoint.type_handlers import NumpyHandler

    class Unchanging(np.ndarray):
        def __deepcopy__(self, memo: Any) -> Any:  # avoids a copy by Orbax
            return self

    class Writer(NumpyHandler):
        async def serialize(self, values: Any, infos: Any, args: Any = None) -> Any:
            places = {info.name.replace('.', '/'): i for i, info in enumerate(infos)}
            held, writes = 0, deque[tuple[int, list[Any]]]()
            try:
                for path, array in leaves:
                    while writes and (held + size(array) > AT_ONCE or len(writes) == 64):
                        held -= writes[0][0]
                        _finish(writes.popleft()[1])
                    i, held = places[path], held + size(array)
                    value = np.asarray(array).view(Unchanging)
                    del array  # otherwise it is kept in memory until the next one arrives
                    written[path] = pool.submit(_inspected, value)
                    futures = await super().serialize([value], [infos[i]], [args[i]])
                    writes.append((size(value), [*futures, written[path]]))
                    del value
            finally:  # wait for all, even if one fails: a write that outlives its event loop prints errors
                _finish([future for _, futures in writes for future in futures])
            return []

    return Writer()


def _finish(writes: Iterable[Any]) -> None:
    """Waits for all writes, then raises the error of the first that failed."""
    errors = []
    for write in writes:
        try:
            write.result()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def read_arrays(
    folder: Path,
    stored: dict[str, Any],
    types: Mapping[str, Any],
    sharding: Any,
    checksums: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Reads the arrays of `stored` in order as (path, array): jax.Array if a sharding is given, else numpy.

    The sharding is one for all arrays, or a dict by path. If the first axis of an array is divided over
    processes, each reads its rows, and one of them reads all rows to verify the checksum; other arrays are
    read and verified by all processes. The dtype of each array is that in `types`, or the stored one. Raises
    CheckpointError, naming the array, if one does not have the expected shape, dtype or checksum.
    """
    with ThreadPoolExecutor(READERS) as pool, ThreadPoolExecutor(CHECKERS) as checkers:
        storage = Storage(folder, checksums or {}, checkers)
        some = partial(_read_some, storage, types, sharding)
        for arrays in map_ahead(pool, some, _groups(stored, types), READERS - 1):
            while arrays:
                path = next(iter(arrays))
                yield path, arrays.pop(path)


def _groups(leaves: dict[str, Any], types: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Groups leaves, in order, by at most AT_ONCE bytes, as stored and as read; a larger leaf is a group."""
    group: dict[str, Any] = {}
    held = 0
    for path, leaf in leaves.items():
        nbytes = leaf.size * max(leaf.dtype.itemsize, types.get(path, leaf.dtype).itemsize)
        if group and held + nbytes > AT_ONCE:
            yield group
            group, held = {}, 0
        group[path] = leaf
        held += nbytes
    yield group


def _read_some(
    storage: Storage, types: Mapping[str, Any], sharding: Any, shapes: dict[str, Any]
) -> dict[str, Any]:
    """Reads the arrays of a group in parallel: shapes by path -> arrays by path."""
    import jax

    from vipllava_jax.weight_sharding import put

    arrays: dict[str, Any] = {}
    reads: dict[str, Reading] = {}
    checks: list[Future[None]] = []
    places = sharding if isinstance(sharding, Mapping) else dict.fromkeys(shapes, sharding)
    opened = {path: storage.open(path) for path in shapes}
    try:
        for path, leaf in shapes.items():
            store = storage.checked(path, leaf, opened[path])
            reads[path] = storage.read(path, store, _rows_to_read(path, places[path], store))
        for path, read in reads.items():
            array = read.result()
            if read.rows is None:
                checks.append(storage.check(path, array))
            array, at = array.astype(types.get(path) or array.dtype, copy=False), places[path]
            arrays[path] = array if at is None else put(array, at, shapes[path].shape, read.rows)
    finally:  # wait for every read that has started before its memory and files are released
        for future in (*opened.values(), *(read.future for read in reads.values())):
            future.exception()
    for check in checks:
        check.result()
    jax.block_until_ready(arrays)  # keeps the host arrays until they are on the device
    return arrays


def _rows_to_read(path: str, at: Any, store: Any) -> slice | None:
    """The rows of an array that this process reads; None for all, whose checksum it verifies.

    One of the processes reads all rows of each array, so that every checksum is verified by one of them.
    """
    from vipllava_jax.weight_sharding import local_rows

    verifier = zlib.crc32(path.encode()) % process_count()
    if at is None or at.is_fully_addressable or verifier == process_index() or not is_raw(store):
        return None
    rows = local_rows(at, store.shape)
    return None if rows == slice(0, store.shape[0]) else rows


@contextlib.contextmanager
def orbax() -> Iterator[Any]:
    """Imports Orbax, which takes seconds, and silences its log."""
    import orbax.checkpoint as ocp

    logger = logging.getLogger('absl')
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield ocp
    finally:
        logger.setLevel(level)
