"""Locates the tensors of a PyTorch checkpoint folder in its files, without PyTorch."""

import os
import warnings
from collections import defaultdict
from pathlib import Path

from vipllava_jax.convert.faults import some_names
from vipllava_jax.convert.pickles import read_pickle
from vipllava_jax.convert.safetensors_files import read_safetensors
from vipllava_jax.convert.tensors import Tensor
from vipllava_jax.files import check_regular, read_json
from vipllava_jax.folders import listing
from vipllava_jax.messages import CheckpointError, brief, printable

SINGLE = ('model.safetensors', 'pytorch_model.bin')
INDEXED = tuple(f'{name}.index.json' for name in SINGLE)


def is_torch_folder(folder: Path) -> bool:
    """Whether a folder holds weights in PyTorch's formats."""
    return any((folder / name).exists() for name in SINGLE + INDEXED) or _shard(folder) is not None


def open_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a PyTorch checkpoint by its name in the files; safetensors files are preferred.

    A single file is preferred to an index of shards, as in transformers, which leaves an old index in place
    when it saves to a single file later; a warning says which is read. Raises CheckpointError, naming the
    file, if one is missing, truncated, corrupt, unsafe or does not agree with the index.
    """
    for single, index in zip(SINGLE, INDEXED, strict=True):
        if (folder / single).exists():
            if (folder / index).exists():
                choice = f'{folder}: {single} is read, as in transformers, and {index} is not'
                warnings.warn(printable(f'{choice}; remove the one that is out of date'), stacklevel=2)
            return read_file(folder / single)
        if (folder / index).exists():
            return _read_shards(folder / index)
    if shard := _shard(folder):
        index = INDEXED[shard.suffix == '.bin']
        raise CheckpointError(f'{folder / index}: missing, though there are shards such as {shard.name}')
    raise CheckpointError(
        f'{folder}: no weights: looked for {", ".join(SINGLE + INDEXED)}, found {listing(folder)}'
    )


def _shard(folder: Path) -> Path | None:
    return next(
        (path for suffix in ('safetensors', 'bin') for path in sorted(folder.glob(f'*-of-*.{suffix}'))), None
    )


def read_file(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, safetensors or `.bin`."""
    try:
        check_regular(path)
        return read_safetensors(path) if path.suffix == '.safetensors' else read_pickle(path)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from None


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index lists; the index and the files must agree on each."""
    where = read_json(index).get('weight_map')
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(f'{index}: no weight_map from tensor names to file names')
    files: dict[str, set[str]] = defaultdict(set)
    for name, file in where.items():
        files[file].add(name)
    for file in sorted(files):
        if file in ('', '.', '..') or '/' in file or '\\' in file or '\0' in file:
            raise CheckpointError(
                f'{index}: refuses {brief(file)}, which is not the name of a file in its folder'
            )
        if not os.path.exists(index.parent / file):
            raise CheckpointError(f'{index.parent / file}: missing, but {index.name} names it')
    tensors: dict[str, Tensor] = {}
    for file, expected in sorted(files.items()):
        found = read_file(index.parent / file)
        for names, problem in (
            (expected - found.keys(), f'lacks tensors that {index.name} says it has'),
            (found.keys() - expected, f'has tensors that {index.name} does not know or puts elsewhere'),
        ):
            if names:
                raise CheckpointError(f'{index.parent / file}: {problem}: {some_names(names)}')
        tensors |= found
    return tensors
