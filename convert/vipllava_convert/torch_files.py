"""Where each tensor of a PyTorch checkpoint folder lies in its files; PyTorch itself is not needed.

A header is believed only as far as its file reaches: every tensor's bytes are known to be there before
one of them is read.
"""

import json
from pathlib import Path
from typing import Any

from vipllava_convert.pickles import read_pickle
from vipllava_convert.tensors import Tensor, dense
from vipllava_jax.folders import CheckpointError, listing, one_line, read_json

SINGLE = ('model.safetensors', 'pytorch_model.bin')
INDEXED = tuple(f'{name}.index.json' for name in SINGLE)
LONGEST_HEADER = 100_000_000  # the format's own limit
SAFETENSORS_TYPES = {
    **{'F64': ('float64', 8), 'F32': ('float32', 4), 'F16': ('float16', 2), 'BF16': ('bfloat16', 2)},
    **{'I64': ('int64', 8), 'I32': ('int32', 4), 'I16': ('int16', 2), 'I8': ('int8', 1)},
    **{'U64': ('uint64', 8), 'U32': ('uint32', 4), 'U16': ('uint16', 2), 'U8': ('uint8', 1)},
    **{'F8_E4M3': ('float8_e4m3fn', 1), 'F8_E5M2': ('float8_e5m2', 1), 'BOOL': ('bool', 1)},
}


def is_torch_folder(folder: Path) -> bool:
    """Whether there are weights in PyTorch's files in a folder."""
    return any((folder / name).exists() for name in SINGLE + INDEXED) or _shard(folder) is not None


def open_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a PyTorch checkpoint by its name in the files; safetensors if both formats are there.

    Raises CheckpointError, naming the file, if one is missing, truncated, corrupt, harmful or at odds
    with the index.
    """
    for single, index in zip(SINGLE, INDEXED, strict=True):
        if (folder / index).exists():
            return _read_shards(folder / index)
        if (folder / single).exists():
            return read_file(folder / single)
    if shard := _shard(folder):
        index = INDEXED[shard.suffix == '.bin']
        raise CheckpointError(f'{folder / index}: missing, though there are shards such as {shard.name}')
    raise CheckpointError(
        f'{folder}: no weights: looked for {", ".join(SINGLE + INDEXED)}, found {listing(folder)}'
    )


def _shard(folder: Path) -> Path | None:
    return next(
        (path for kind in ('safetensors', 'bin') for path in sorted(folder.glob(f'*-of-*.{kind}'))), None
    )


def read_file(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, safetensors or `.bin`."""
    try:
        return read_safetensors(path) if path.suffix == '.safetensors' else read_pickle(path)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from None


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all the files an index names, the index and the files agreeing on every one."""
    data = read_json(index)
    where = data.get('weight_map')
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(f'{index}: no weight_map from tensor names to file names')
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(where.values())):
        if file in ('', '.', '..') or '/' in file or '\\' in file or '\0' in file:
            raise CheckpointError(f'{index}: refuses {file!r}, which is not the name of a file beside it')
        if not (index.parent / file).exists():
            raise CheckpointError(f'{index.parent / file}: missing, but {index.name} names it')
        found = read_file(index.parent / file)
        wanted = {name for name, home in where.items() if home == file}
        for names, told in (
            (wanted - found.keys(), f'lacks tensors that {index.name} says it has'),
            (found.keys() - wanted, f'has tensors that {index.name} does not know or puts elsewhere'),
        ):
            if names:
                raise CheckpointError(f'{index.parent / file}: {told}: {_some(names)}')
        tensors |= found
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, which must be filled by them without a gap."""
    size = path.stat().st_size
    with open(path, 'rb') as file:
        start = file.read(8)
        if start == b'version ':
            raise CheckpointError(
                f'{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder'
            )
        length = int.from_bytes(start, 'little')
        if len(start) < 8 or length > min(LONGEST_HEADER, size - 8):
            raise CheckpointError(
                f'{path}: truncated or corrupt: a header of {length} bytes in a file of {size}'
            )
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
            header.pop('__metadata__', None)
            ends = [(*_checked(entry), name) for name, entry in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f'{path}: the header is corrupt: {one_line(error)}') from None
    tensors, reached = {}, 0
    for begin, end, dtype, shape, name in sorted(ends):
        if begin != reached:
            raise CheckpointError(
                f'{path}: {name} begins at byte {begin}, the tensor before it ends at {reached}'
            )
        tensors[name], reached = Tensor(path, 8 + length + begin, dtype, shape, dense(shape)), end
    if 8 + length + reached != size:
        told = 'truncated' if 8 + length + reached > size else 'longer than its header says'
        raise CheckpointError(f'{path}: {told}: {8 + length + reached} bytes expected, {size} found')
    return tensors


def _checked(entry: dict[str, Any]) -> tuple[int, int, str, tuple[int, ...]]:
    """An entry of a safetensors header -> where its bytes begin and end, its type and shape."""
    code, shape, (begin, end) = entry['dtype'], tuple(entry['shape']), entry['data_offsets']
    if code not in SAFETENSORS_TYPES:
        raise ValueError(f'the type {code!r} is unknown')
    dtype, size = SAFETENSORS_TYPES[code]
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f'shape {shape} and offsets {begin}, {end} are not whole numbers')
    for n in shape:
        size *= n
    if end - begin != size:
        raise ValueError(f'{code} {list(shape)} takes {size} bytes, the offsets span {end - begin}')
    return begin, end, dtype, shape


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError('a name occurs twice')
    return found


def _some(names: set[str]) -> str:
    return ', '.join(sorted(names)[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
