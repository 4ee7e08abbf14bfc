"""The files in which Orbax stores arrays, opened without trust in what they say of themselves."""

import os
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vipllava_jax.files import check_regular
from vipllava_jax.messages import CheckpointError

MOST_FILES = 1_000_000


@dataclass(frozen=True)
class Storage:
    """A folder of arrays, the checksums of those of which they are known, and who compares them."""

    folder: Path
    checksums: Mapping[str, str]
    checkers: Executor

    def open(self, path: str) -> Any:
        """Begins to open an array; of the folder's metadata only the index and the array's own are read."""
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
            'fill_missing_data_reads': False,  # an array whose data is gone is an error, not zeros
        }
        return tensorstore.open(spec, open=True, read=True, context=self._context)

    def checked(self, path: str, leaf: Any, opened: Any) -> Any:
        """An array that is being opened, once it has the shape and type that it should have, uncompressed.

        Its chunks are no larger than itself, so that reading it takes no more memory than was planned,
        whatever its metadata says.
        """
        expected = f'{path} is not the array {list(leaf.shape)} that is expected'
        store = self.result(path, opened, expected)
        chunk = store.chunk_layout.read_chunk.shape
        fits = store.shape == leaf.shape and all(
            n <= max(size, 1) for n, size in zip(chunk, leaf.shape, strict=True)
        )
        if not fits or store.dtype.numpy_dtype != leaf.dtype or store.codec.to_json().get('compressor'):
            raise CheckpointError(f'{self.folder}: {expected}; convert it again')
        return store

    def check(self, path: str, array: Any) -> Future[None]:
        """Begins to check that an array's bytes have the checksum of those that were written."""
        return self.checkers.submit(self._check, path, array)

    def _check(self, path: str, array: Any) -> None:
        from vipllava_jax.integrity import checksum

        if path in self.checksums and checksum(array) != self.checksums[path]:
            raise self.damaged(f'{path} does not have the checksum of what was written')

    def result(self, path: str, future: Any, expected: str = '') -> Any:
        """What tensorstore was asked for; CheckpointError for its errors, which are of several types."""
        try:
            return future.result()
        except MemoryError:
            raise
        except Exception as error:
            if expected and 'Metadata at' in str(error):
                raise CheckpointError(f'{self.folder}: {expected}: there is none; convert it again') from None
            raise self.damaged(f'{path}: {without_details(error)}') from None

    def damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f'{self.folder}: damaged or not whole, copy it again: {reason}')

    @cached_property
    def _place(self) -> str:
        return f'{self.folder.resolve()}/'

    @cached_property
    def _context(self) -> Any:
        """How tensorstore reads these files: many at a time, and the nodes of the index only once."""
        import tensorstore

        self._check_files()
        return tensorstore.Context(
            {'file_io_concurrency': {'limit': 128}, 'cache_pool#nodes': {'total_bytes_limit': 100_000_000}}
        )

    def _check_files(self) -> None:
        """CheckpointError unless all that is there is folders and regular files that belong to the model.

        Opening a FIFO would wait for ever, and a link that leads elsewhere would bring another file's bytes
        into the weights. Links into the blobs of the Hub's cache are how that stores files.
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
                        if seen > MOST_FILES:
                            raise CheckpointError(f'{self.folder}: more than {MOST_FILES} files: no model')
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(Path(entry.path))
                        else:
                            _check_file(Path(entry.path), homes)
            except OSError as error:
                raise self.damaged(f'{error.filename}: {error.strerror}') from None


def without_details(error: Exception) -> str:
    """What an error of tensorstore's says, but for the specification and source lines that it appends."""
    return str(error).partition(' [tensorstore_spec=')[0].partition(' [source locations=')[0]


def _check_file(path: Path, homes: list[Path]) -> None:
    """CheckpointError unless a path is a regular file, or a link to one in some folders."""
    target = path.resolve()
    if path.is_symlink() and not any(target.is_relative_to(home) for home in homes):
        raise CheckpointError(f'{path}: a link out of the model, to {target}; put the file itself there')
    check_regular(path)
