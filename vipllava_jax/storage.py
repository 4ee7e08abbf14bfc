"""Opens arrays that Orbax has stored, in files that may be damaged or malicious."""

import math
import os
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vipllava_jax.files import check_regular
from vipllava_jax.messages import CheckpointError

MAX_FILES = 1_000_000


@dataclass(frozen=True)
class Storage:
    """A folder of arrays, their known checksums by path, and the threads that verify them."""

    folder: Path
    checksums: Mapping[str, str]
    checkers: Executor

    def open(self, path: str) -> Any:
        """Starts to open an array; reads only the index of the folder and the metadata of the array."""
        import tensorstore

        spec = {
            'driver': 'zarr',
            'kvstore': {
                'driver': 'ocdbt',
                'base': {'driver': 'file', 'path': self._place},
                'path': f'{path.replace("/", ".")}/',
                'cache_pool': 'cache_pool#nodes',
            },
            'recheck_cached_data': False,
            'recheck_cached_metadata': False,
            'fill_missing_data_reads': False,  # missing data is an error, not zeros
        }
        return tensorstore.open(spec, open=True, read=True, context=self._context)

    def checked(self, path: str, leaf: Any, opened: Any) -> Any:
        """Waits for an array to open; raises CheckpointError unless it has the shape and dtype of `leaf`.

        It must also be uncompressed and its chunks no larger than the array, so that reading takes no more
        memory than expected.
        """
        expected = f'{path} is not an uncompressed {leaf.dtype} array of the shape {list(leaf.shape)}'
        store = self.result(path, opened, expected)
        chunk = store.chunk_layout.read_chunk.shape
        fits = store.shape == leaf.shape and all(
            n <= max(size, 1) for n, size in zip(chunk, leaf.shape, strict=True)
        )
        if not fits or store.dtype.numpy_dtype != leaf.dtype or store.codec.to_json().get('compressor'):
            raise CheckpointError(f'{self.folder}: {expected}; convert it again')
        return store

    def read(self, path: str, store: Any, rows: slice | None = None) -> 'Reading':
        """Starts to read an array, or a range of the first axis of one that `is_raw`."""
        if rows is None:
            return Reading(self, path, store, None, store.read())
        row = store.dtype.numpy_dtype.itemsize * math.prod(store.shape[1:])
        chunk = '.'.join('0' for _ in store.shape)
        read = store.kvstore.read(chunk, byte_range=slice(rows.start * row, rows.stop * row))
        return Reading(self, path, store, rows, read)

    def check(self, path: str, array: Any) -> Future[None]:
        """Starts to verify the checksum of an array's bytes."""
        return self.checkers.submit(self._check, path, array)

    def _check(self, path: str, array: Any) -> None:
        from vipllava_jax.integrity import checksum

        if path in self.checksums and checksum(array) != self.checksums[path]:
            raise self.damaged(f'{path} does not match the checksum that was computed when it was written')

    def result(self, path: str, future: Any, expected: str = '') -> Any:
        """The result of a tensorstore future; its errors, of several types, are raised as CheckpointError."""
        try:
            return future.result()
        except MemoryError:
            raise
        except Exception as error:
            if expected and 'Metadata at' in str(error):
                raise CheckpointError(f'{self.folder}: {path} is missing; convert it again') from None
            raise self.damaged(f'{path}: {without_details(error)}') from None

    def damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f'{self.folder}: damaged or incomplete, copy it again: {reason}')

    @cached_property
    def _place(self) -> str:
        return f'{self.folder.resolve()}/'

    @cached_property
    def _context(self) -> Any:
        """Tensorstore's settings: many files are read in parallel, and the index is cached."""
        import tensorstore

        self._check_files()
        return tensorstore.Context(
            {'file_io_concurrency': {'limit': 128}, 'cache_pool#nodes': {'total_bytes_limit': 100_000_000}}
        )

    def _check_files(self) -> None:
        """Raises CheckpointError unless the folder holds only folders and regular files of the model.

        Opening a FIFO would block forever, and a link out of the folder would read another file's bytes into
        the weights. Links into the `blobs` folder of the Hub's cache are allowed: it stores files that way.
        """
        home = self.folder.parent.resolve()
        homes = [home, self.folder.resolve()]
        if home.parent.name == 'snapshots':
            homes.append((home.parent.parent / 'blobs').resolve())
        pending, seen = [self.folder], 0
        while pending:
            place = pending.pop()
            try:
                with os.scandir(place) as entries:
                    for entry in entries:
                        seen += 1
                        if seen > MAX_FILES:
                            raise CheckpointError(
                                f'{self.folder}: more than {MAX_FILES} files, which no model has'
                            )
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(Path(entry.path))
                        else:
                            _check_file(Path(entry.path), homes)
            except OSError as error:
                raise self.damaged(f'{error.filename}: {error.strerror}') from None


@dataclass(frozen=True)
class Reading:
    """An array, or some of its rows, while it is read."""

    storage: Storage
    path: str
    store: Any
    rows: slice | None  # of the first axis; None for all
    future: Any

    def result(self) -> Any:
        """Waits for the array; raises CheckpointError if it cannot be read."""
        import numpy as np

        found = self.storage.result(self.path, self.future)
        if self.rows is None:
            return found
        if found.state != 'value':
            raise self.storage.damaged(f'{self.path}: its data is missing')
        return np.frombuffer(found.value, self.store.dtype.numpy_dtype).reshape(-1, *self.store.shape[1:])


def is_raw(store: Any) -> bool:
    """Whether an array is stored as its bytes in C order in one piece, so that rows can be read alone."""
    metadata = store.spec().to_json()['metadata']
    return (
        tuple(metadata['chunks']) == store.shape
        and metadata['order'] == 'C'
        and not metadata['filters']
        and not str(metadata['dtype']).startswith('>')
    )


def without_details(error: Exception) -> str:
    """The message of a tensorstore error, without the specification and source lines at its end."""
    return str(error).partition(' [tensorstore_spec=')[0].partition(' [source locations=')[0]


def _check_file(path: Path, homes: list[Path]) -> None:
    """Raises CheckpointError unless a path is a regular file, or a link to one in the given folders."""
    target = path.resolve()
    if path.is_symlink() and not any(target.is_relative_to(home) for home in homes):
        raise CheckpointError(f'{path}: a link out of the model, to {target}; replace it by the file')
    check_regular(path)
