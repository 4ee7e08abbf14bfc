"""The settings in a file of answers: everything on which answers depend."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass

SAMPLE = 1 << 16  # bytes
SAMPLES = 16  # of a file


def describe_model(source: str, folder: Path, adapter: str | None, portable: bool) -> dict[str, Any]:
    """The settings `model`, `adapter` and `weights`.

    If they are `portable`, they are equal for copies of the same files on several computers.
    """
    folders = [folder, *([Path(adapter)] if adapter else [])]
    if portable:
        return {'model': source, 'adapter': adapter, 'weights': content_fingerprint(folders)}
    return {
        'model': str(folder.resolve()),
        'adapter': adapter and str(Path(adapter).resolve()),
        'weights': fingerprint(folders),
    }


def fingerprint(folders: Iterable[Path]) -> str:
    """A hash that changes whenever a file in one of the folders is written."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in folders:
        for path in sorted(folder.rglob('*')):
            if path.is_file():
                status = path.stat()
                name = path.relative_to(folder)
                digest.update(f'{name} {status.st_size} {status.st_mtime_ns}\n'.encode())
    return digest.hexdigest()


def content_fingerprint(folders: Iterable[Path]) -> str:
    """A hash of the names, sizes and samples of the bytes of all files: the same for copies.

    Each file is sampled at `SAMPLES` places, evenly from its start to its end.
    """
    digest = hashlib.blake2b(digest_size=16)
    for folder in folders:
        for path in sorted(folder.rglob('*')):
            if not path.is_file():
                continue
            size = path.stat().st_size
            digest.update(f'{path.relative_to(folder)} {size}\n'.encode())
            with path.open('rb', buffering=0) as file:
                last = max(size - SAMPLE, 0)
                for start in sorted({last * n // (SAMPLES - 1) for n in range(SAMPLES)}):
                    file.seek(start)
                    digest.update(file.read(SAMPLE))
    return digest.hexdigest()
