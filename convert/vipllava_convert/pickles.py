"""The tensors of a `.bin` file: a zip archive of one pickle and of the bytes of every storage.

A pickle is a program. This reader runs none of it but what builds dicts, lists and descriptions of
tensors: `find_class` is the only door to a name outside, and behind it stand the functions below.
"""

import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_convert.tensors import Tensor, extent
from vipllava_jax.folders import CheckpointError

LONGEST_PICKLE = 1 << 26  # a checkpoint of 760 tensors has 100 KB
STORAGES = {
    **{'FloatStorage': ('float32', 4), 'HalfStorage': ('float16', 2), 'BFloat16Storage': ('bfloat16', 2)},
    **{'DoubleStorage': ('float64', 8), 'LongStorage': ('int64', 8), 'IntStorage': ('int32', 4)},
    **{'ShortStorage': ('int16', 2), 'CharStorage': ('int8', 1), 'ByteStorage': ('uint8', 1)},
    **{'BoolStorage': ('bool', 1)},
}


class _Storage(NamedTuple):
    """A storage's bytes in the archive."""

    file: Path
    offset: int
    dtype: str
    itemsize: int
    length: int  # in elements


class _Dict(dict[Any, Any]):
    """An OrderedDict; the attributes that a state dict has besides its items are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _RebuildTensor:
    """What a pickle may call for a tensor; an object without attributes, which a pickle cannot change."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        if (
            not isinstance(storage, _Storage)
            or not isinstance(shape, tuple)
            or not isinstance(strides, tuple)
        ):
            raise ValueError('a tensor without a storage, a shape and strides')
        if len(shape) != len(strides) or not all(
            type(n) is int and n >= 0 for n in (offset, *shape, *strides)
        ):
            raise ValueError(
                f'offset {offset}, shape {shape} and strides {strides} are not those of a tensor'
            )
        if offset + extent(shape, strides) > storage.length:
            raise ValueError(
                f'offset {offset}, shape {list(shape)} and strides {list(strides)} reach beyond a storage of '
                f'{storage.length} elements'
            )
        place = storage.offset + offset * storage.itemsize
        return Tensor(storage.file, place, storage.dtype, shape, strides)


class _RebuildParameter:
    """What a pickle may call for a parameter: its tensor is all we want of it."""

    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, path: Path, storage: Callable[[str, str, int], _Storage]):
        super().__init__(io.BytesIO(data), encoding='utf-8')
        self.path, self.storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case 'collections', 'OrderedDict':
                return _Dict
            case 'torch._utils', '_rebuild_tensor_v2':
                return _RebuildTensor()
            case 'torch._utils', '_rebuild_parameter':
                return _RebuildParameter()
            case 'torch', kind if kind in STORAGES:
                return kind
        raise CheckpointError(
            f'{self.path}: refuses {" ".join(f"{module}.{name}".split())}, which no tensor needs and which '
            'could run code; get the checkpoint as safetensors, or from someone you trust'
        )

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ('storage', str(kind), str(key), _, int(length)) if kind in STORAGES:
                return self.storage(kind, key, length)
        raise ValueError(f'{pid!r} does not name a storage')


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Every tensor of a `.bin` file that torch.save wrote; whatever is not a dict of tensors is an error."""
    with open(path, 'rb') as file:
        start = file.read(8)
    if start == b'version ':
        raise CheckpointError(f'{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder')
    if start[:4] != b'PK\3\4':
        raise CheckpointError(
            f'{path}: not a file that torch.save wrote since PyTorch 1.6; load it and save it again'
        )
    try:
        with zipfile.ZipFile(path) as archive:
            tensors = _read_archive(path, archive)
    except CheckpointError:
        raise
    except Exception as error:  # damage and malice make zipfile and pickle raise anything
        told = ' '.join(f'{type(error).__name__} {error}'.split())
        raise CheckpointError(f'{path}: truncated or corrupt: {told}') from None
    if not isinstance(tensors, dict) or not tensors:
        raise CheckpointError(f'{path}: holds {type(tensors).__name__}, not a dict of tensors')
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            found = type(tensor).__name__
            raise CheckpointError(f'{path}: holds {found} under {name!r}, where a tensor should be')
    return dict(tensors)


def _read_archive(path: Path, archive: zipfile.ZipFile) -> Any:
    """What the pickle of an archive makes."""
    entries = {info.filename: info for info in archive.infolist()}
    root = next((name[:-8] for name in entries if name.endswith('/data.pkl') and name.count('/') == 1), '')
    data = entries.get(root + 'data.pkl')
    for wrong, told in (
        (data is None, 'no data.pkl in the archive; this is not a file that torch.save wrote'),
        (
            root + 'constants.pkl' in entries,
            'a TorchScript program, not weights; save its state_dict instead',
        ),
        (
            any(info.compress_type or info.flag_bits & 1 for info in entries.values()),
            'compressed or encrypted',
        ),
        (data and data.file_size > LONGEST_PICKLE, 'the data.pkl in it is far too large for a checkpoint'),
        (root + 'byteorder' in entries and archive.read(root + 'byteorder') != b'little', 'big-endian'),
    ):
        if wrong:
            raise CheckpointError(f'{path}: {told}')

    def storage(kind: str, key: str, length: int) -> _Storage:
        dtype, itemsize = STORAGES[kind]
        info = entries[f'{root}data/{key}']
        if info.file_size != length * itemsize:
            raise ValueError(f'data/{key} has {info.file_size} bytes, {length} elements of {dtype} do not')
        return _Storage(path, _data_offset(path, info), dtype, itemsize, length)

    program = archive.read(root + 'data.pkl')
    _check_sizes(program)
    return _Unpickler(program, path, storage).load()


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored entry begin, which only the header in front of them says."""
    with open(path, 'rb') as file:
        file.seek(info.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b'PK\3\4':
            raise ValueError(f'{info.filename} has no header')
        name, extra = struct.unpack('<HH', header[26:30])
    offset = info.header_offset + 30 + name + extra
    if offset + info.file_size > path.stat().st_size:
        raise ValueError(f'{info.filename} ends beyond the end of the file')
    return offset


def _check_sizes(data: bytes) -> None:
    """Refuses a pickle that asks for more memory than it has bytes: genops reads every length it states."""
    for opcode, arg, _ in pickletools.genops(data):
        if 'PUT' in opcode.name and arg is not None and int(arg) > len(data):
            raise ValueError(f'{opcode.name} {arg}')
