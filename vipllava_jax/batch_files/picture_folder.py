"""A folder of pictures as the rows of a batch: one question about each picture."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from vipllava_jax.batch_files.sources import RawRow

SUFFIXES = (
    *('.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.ppm', '.pgm'),
    *('.jp2', '.j2k', '.avif', '.ico'),
)


class FolderRows:
    """The pictures in a folder and the folders below it, by name; hidden ones are left out."""

    def __init__(self, folder: Path):
        self.folder = folder
        digest = hashlib.blake2b(digest_size=16)
        self.size = 0
        for name in picture_names(folder):
            digest.update(os.fsencode(name) + b'\0')
            self.size += 1
        if not self.size:
            raise ValueError(f'{folder} has no pictures: expected files that end in {", ".join(SUFFIXES)}')
        self.hash = digest.hexdigest()

    def rows(self) -> Iterator[RawRow]:
        for number, name in enumerate(picture_names(self.folder), 1):
            id = os.fsencode(name).decode('utf-8', 'backslashreplace')
            text = json.dumps({'id': id, 'image': id}).encode()
            yield RawRow(number, text, len(text), number)

    def fingerprint(self) -> dict[str, str | int]:
        return {'pictures': self.size, 'hash': self.hash}


def picture_names(folder: Path) -> Iterator[str]:
    """The paths of the pictures, relative to the folder, in a fixed order."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith('.'):
                yield os.path.relpath(os.path.join(place, name), folder)
