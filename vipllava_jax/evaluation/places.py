"""Where an evaluation writes: to files of its own, none of which it reads."""

import os
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

from vipllava_jax.files import same_file


def check(outputs: Mapping[str, Path], inputs: Iterable[Path], folders: Iterable[Path] = ()) -> None:
    """ValueError if an output is one of the inputs or of the other outputs, or lies in one of the folders.

    Files are compared by device and inode, so that links and other spellings do not hide them.
    """
    for (name, path), (other, same) in combinations(outputs.items(), 2):
        if same_file(path, same):
            raise ValueError(f'{name} and {other} are one file, {path}: give another place for one of them')
    for name, path in outputs.items():
        place = path.resolve()
        for folder in folders:
            if any(same_file(at, folder) for at in (place, *place.parents)):
                raise ValueError(f'{name} {path} lies in {folder}, which is read: give another place')
    there = {found: name for name, path in outputs.items() if (found := _identity(path))}
    for path in inputs if there else ():
        if (found := _identity(path)) in there and found:
            name = there[found]
            raise ValueError(
                f'{name} {outputs[name]} is also read ({path}) and would be overwritten: give another place'
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """The device and inode of a file; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
