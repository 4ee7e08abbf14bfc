"""Checks that an evaluation overwrites nothing that it reads."""

import os
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

from vipllava_jax.files import holds, lies_in, same_file


def check_outputs(outputs: Mapping[str, Path], inputs: Iterable[Path], folders: Iterable[Path] = ()) -> None:
    """Raises ValueError if an output is an input or another output, or lies in one of the folders.

    Files are compared by device and inode, so that links and other spellings of a path are recognized.
    """
    for (name, path), (other, other_path) in combinations(outputs.items(), 2):
        if same_file(path, other_path):
            raise ValueError(f'{name} and {other} are one file, {path}: give another path for one of them')
    for name, path in outputs.items():
        for folder in folders:
            if lies_in(path, folder) or holds(folder, path):
                raise ValueError(f'{name} {path} lies in {folder}, which is read: give another path')
    existing = {identity: name for name, path in outputs.items() if (identity := _identity(path))}
    for path in inputs if existing else ():
        if (identity := _identity(path)) in existing and identity:
            name = existing[identity]
            raise ValueError(
                f'{name} {outputs[name]} is also read ({path}) and would be overwritten: give another path'
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """The device and inode of a file; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
