"""Locates the tensors of a `.bin` file: a ZIP archive of one pickle and the bytes of each storage."""

import os
from pathlib import Path
from typing import Any, BinaryIO

from vipllava_jax.convert.archives import ArchiveError, Entry, read_directory, read_entry
from vipllava_jax.convert.records import ITEM_SIZES, Compound, Refused, View, type_of
from vipllava_jax.convert.tensors import LONGEST_NAME, Tensor, check_not_pointer, extent, open_regular
from vipllava_jax.convert.unpickler import unpickle
from vipllava_jax.messages import CheckpointError, brief, one_line

LONGEST_PICKLE = 1 << 26  # a checkpoint of 760 tensors has 100 KB
PICKLE = 'data.pkl'


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Every tensor of a `.bin` file that torch.save wrote; anything but a dict of tensors is an error."""
    with open_regular(path) as file:
        start = file.read(8)
        check_not_pointer(path, start)
        if not start:
            raise CheckpointError(f'{path}: an empty file; copy it again')
        if start[:4] != b'PK\3\4':
            raise CheckpointError(
                f'{path}: not a file that torch.save wrote since PyTorch 1.6; load it and save it again'
            )
        try:
            return _read_archive(path, file)
        except CheckpointError:
            raise
        except Refused as error:
            raise CheckpointError(f'{path}: {error}') from None
        except ArchiveError as error:
            raise CheckpointError(f'{path}: truncated or corrupt: {error}') from None
        except ValueError as error:
            raise CheckpointError(f'{path}: {PICKLE} is corrupt or malicious: {one_line(error)}') from None


def _read_archive(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    entries = read_directory(file)
    roots = [name.removesuffix(PICKLE) for name in entries if _is_program(name)]
    if not roots:
        raise CheckpointError(f'{path}: no data.pkl in the archive; this is not a file that torch.save wrote')
    if len(roots) > 1:
        raise CheckpointError(f'{path}: several data.pkl in one archive; torch.save writes one')
    root = roots[0]
    if root + 'constants.pkl' in entries:
        raise CheckpointError(f'{path}: a TorchScript program, not weights; save its state_dict instead')
    if entries[root + PICKLE].size > LONGEST_PICKLE:
        raise CheckpointError(f'{path}: the data.pkl in the archive is too large for a checkpoint')
    order = entries.get(root + 'byteorder')
    if order and (order.size != len(b'little') or read_entry(file, order) != b'little'):
        raise CheckpointError(f'{path}: big-endian')
    found = unpickle(read_entry(file, entries[root + PICKLE]))
    return _tensors(path, found, root, entries)


def _is_program(name: str) -> bool:
    """Whether an entry is the archive's pickle, at the top level or one folder down."""
    return name == PICKLE or (name.endswith('/' + PICKLE) and name.count('/') == 1)


def _tensors(path: Path, found: Any, root: str, entries: dict[str, Entry]) -> dict[str, Tensor]:
    """The tensors in the result of a pickle."""
    if not isinstance(found, Compound) or not isinstance(found.parts, dict) or not found.parts:
        content = (
            f'an empty {found.type}' if isinstance(found, Compound) and not found.parts else type_of(found)
        )
        raise CheckpointError(f'{path}: holds {content}, not a dict of tensors')
    tensors = {}
    size = os.stat(path).st_size
    for name, value in found.parts.items():
        if not isinstance(name, str) or not isinstance(value, View):
            raise CheckpointError(f'{path}: {brief(name)}: expected a tensor, found {type_of(value)}')
        if len(name) > LONGEST_NAME:
            raise CheckpointError(f'{path}: the name of a tensor is too long: {brief(name)}')
        entry = entries.get(f'{root}data/{value.storage.key}')
        tensors[name] = _tensor(path, name, value, entry, size)
    return tensors


def _tensor(path: Path, name: str, view: View, entry: Entry | None, size: int) -> Tensor:
    """A tensor, checked to lie within its storage, and its storage within the file."""
    storage = view.storage
    if entry is None:
        raise ValueError(f'{brief(name)}: the archive has no storage {brief(storage.key)}')
    if entry.size != storage.length * storage.itemsize:
        raise ValueError(
            f'{brief(name)}: storage {brief(storage.key)} has {entry.size} bytes, '
            f'expected {storage.length} elements of {storage.dtype}'
        )
    itemsize = ITEM_SIZES[view.dtype]
    end = (view.offset + extent(view.shape, view.strides)) * itemsize
    if end > entry.size or entry.offset + entry.size > size:
        raise ValueError(
            f'{brief(name)}: offset {view.offset}, shape {brief(list(view.shape))} and strides '
            f'{brief(list(view.strides))} reach beyond a storage of {storage.length} elements'
        )
    empty = 0 in view.shape
    strides = (0 if empty or n == 1 else stride for n, stride in zip(view.shape, view.strides, strict=True))
    return Tensor(path, entry.offset + view.offset * itemsize, view.dtype, view.shape, tuple(strides))
