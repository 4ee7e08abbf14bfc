"""The output folder of a run: it can be written, and holds nothing that the run reads."""

import os
from collections.abc import Iterator
from pathlib import Path

from vipllava_jax.files import check_regular, lies_in, same_file
from vipllava_jax.training.run_record import FILE
from vipllava_jax.training.settings import TrainingSettings

FILES = (FILE, 'metrics.jsonl', '.lock')
WRITTEN = (*FILES, 'checkpoints', 'tensorboard')  # the names that a run writes, in addition to the result


def result_folder(settings: TrainingSettings) -> Path:
    """The folder of the finished model or adapter, in the output folder of the run."""
    adapter_only = (
        'lora' in settings.trains and not settings.merge and {*settings.trains} <= {'lora', 'projector'}
    )
    return Path(settings.output) / ('adapter' if adapter_only else 'model')


def check_writable_folder(output: Path) -> None:
    """Raises ValueError if the output folder cannot be created or written to."""
    existing = next(path for path in (output, *output.absolute().parents) if os.path.lexists(path))
    if existing.is_symlink() and not existing.exists():
        raise ValueError(f'{output}: {existing} is a broken link: choose another output')
    if not existing.is_dir():
        raise ValueError(f'{output}: {existing} is a file, expected a folder: choose another output')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f'{output}: {existing} cannot be written to: choose another output')


def check_overwrites_no_input(settings: TrainingSettings, source: Path) -> None:
    """Raises ValueError if a run would write to, or overwrite, something that it reads.

    `source` is the folder of the model that it starts from. Files and folders are compared by device and
    inode, so that links and other spellings of a path are recognized.
    """
    output = Path(settings.output)
    if lies_in(output, source):
        raise ValueError(
            f'output {output} is the folder of the initial model, or lies in it ({source}): choose '
            'another output'
        )
    if settings.images is not None and same_file(output, Path(settings.images)):
        raise ValueError(f'output {output} is the folder of the pictures: choose another folder')
    for file in (output / name for name in FILES):
        if file.is_symlink():
            raise ValueError(
                f'{file} is a link, and the run would overwrite the file that it points to: remove it, or '
                'choose another output'
            )
        if file.exists():
            check_regular(file)  # a FIFO would wait for a reader
    for key, path in _inputs(settings, source):
        for written in (result_folder(settings), *(output / name for name in WRITTEN)):
            if lies_in(path, written) or (key == 'model' and lies_in(written, path)):
                raise ValueError(
                    f'{key} {path} is, lies in, or contains {written}, which the run writes: choose another '
                    'output'
                )


def _inputs(settings: TrainingSettings, source: Path) -> Iterator[tuple[str, Path]]:
    """The files and folders that a run reads, each with the setting that names it."""
    yield 'model', source
    for file in settings.data:
        yield 'data', Path(file)
    if settings.eval_data is not None:
        yield 'eval_data', Path(settings.eval_data)
    if settings.images is not None:
        yield 'images', Path(settings.images)
