"""Where a run writes: a folder of its own, in which nothing lies that it reads."""

import os
from collections.abc import Iterator
from pathlib import Path

from vipllava_jax.files import same_file
from vipllava_jax.training.config import Settings
from vipllava_jax.training.identity import FILE

WRITTEN = (FILE, 'metrics.jsonl', '.lock', 'checkpoints', 'tensorboard')  # besides the result


def result(settings: Settings) -> Path:
    """The folder, in that of the run, which holds the result when it is whole."""
    alone = 'lora' in settings.trains and not settings.merge and {*settings.trains} <= {'lora', 'projector'}
    return Path(settings.output) / ('adapter' if alone else 'model')


def check_folder(output: Path) -> None:
    """ValueError if no folder can be made or written there."""
    there = next(path for path in (output, *output.absolute().parents) if os.path.lexists(path))
    if there.is_symlink() and not there.exists():
        raise ValueError(f'{output}: {there} is a link to what is not there: choose another output')
    if not there.is_dir():
        raise ValueError(f'{output}: {there} is a file, expected a folder: choose another output')
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f'{output}: {there} cannot be written to: choose another output')


def check_apart(settings: Settings, source: Path) -> None:
    """ValueError if a run would write into, or over, what it reads; `source` is the folder of its model.

    Files and folders are compared by device and inode, so links and other spellings do not hide them.
    """
    output = Path(settings.output)
    if _within(output, source):
        raise ValueError(
            f'output {output} is the model that the run begins with, or lies in it ({source}): choose '
            'a folder of its own'
        )
    if settings.images is not None and same_file(output, Path(settings.images)):
        raise ValueError(f'output {output} is the folder of the pictures: choose a folder of its own')
    for key, path in _read(settings, source):
        for written in (result(settings), *(output / name for name in WRITTEN)):
            if _within(path, written):
                raise ValueError(
                    f'{key} {path} is, or lies in, {written}, which the run writes: choose another output'
                )


def _read(settings: Settings, source: Path) -> Iterator[tuple[str, Path]]:
    """What a run reads, each with the key that says so."""
    yield 'model', source
    for file in settings.data:
        yield 'data', Path(file)
    if settings.eval_data is not None:
        yield 'eval_data', Path(settings.eval_data)
    if settings.images is not None:
        yield 'images', Path(settings.images)


def _within(path: Path, place: Path) -> bool:
    """Whether a path is a place or lies in it, by whatever links."""
    resolved = path.resolve()
    return any(same_file(at, place) for at in (resolved, *resolved.parents))
