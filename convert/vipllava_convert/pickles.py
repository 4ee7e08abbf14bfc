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
    """An OrderedDict, without the attributes that a state dict has besides its items."""

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
            f'{self.path}: refuses {module}.{name}: this file would run code, and weights need none; '
            'get the checkpoint as safetensors, or from someone you trust'
        )

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ('storage', str(kind), str(key), _, int(length)) if kind in STORAGES:
                return self.storage(kind, key, length)
        raise ValueError(f'{pid!r} does not name a storage')


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Every tensor of a `.bin` file that torch.save wrote; whatever is not a dict of tensors is an error."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except zipfile.BadZipFile as error:
        with open(path, 'rb') as file:
            start = file.read(8)
        if start == b'version ':
            raise CheckpointError(
                f'{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder'
            ) from None
        told = (
            'truncated or corrupt'
            if start[:4] == b'PK\3\4'
            else 'not a file that torch.save wrote since PyTorch 1.6'
        )
        raise CheckpointError(f'{path}: {told} ({error}); save it again, as safetensors if you can') from None


def _read_archive(path: Path, archive: zipfile.ZipFile) -> dict[str, Tensor]:
    entries = {info.filename: info for info in archive.infolist()}
    roots = [
        name.removesuffix('data.pkl')
        for name in entries
        if name.endswith('/data.pkl') and name.count('/') == 1
    ]
    if len(roots) != 1:
        raise CheckpointError(f'{path}: no data.pkl in the archive; this is not a file that torch.save wrote')
    root = roots[0]
    if root + 'constants.pkl' in entries:
        raise CheckpointError(
            f'{path}: a TorchScript program, not a checkpoint; save the state_dict of its model'
        )
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in entries.values()):
        raise CheckpointError(f'{path}: compressed or encrypted; save it again with torch.save')
    if root + 'byteorder' in entries and archive.read(root + 'byteorder') != b'little':
        raise CheckpointError(
            f'{path}: written on a big-endian machine; save it again on a little-endian one'
        )
    if entries[root + 'data.pkl'].file_size > LONGEST_PICKLE:
        raise CheckpointError(
            f'{path}: a data.pkl of {entries[root + "data.pkl"].file_size} bytes is no checkpoint'
        )

    def storage(kind: str, key: str, length: int) -> _Storage:
        dtype, itemsize = STORAGES[kind]
        info = entries.get(f'{root}data/{key}')
        if info is None or info.file_size != length * itemsize:
            found = 'missing' if info is None else f'{info.file_size} bytes'
            raise ValueError(f'data/{key} is {found}, {length} elements of {dtype} take {length * itemsize}')
        return _Storage(path, _data_offset(path, info), dtype, itemsize, length)

    try:
        data = archive.read(root + 'data.pkl')
        _check_sizes(data)
        tensors = _Unpickler(data, path, storage).load()
    except CheckpointError:
        raise
    except zipfile.BadZipFile:
        raise
    except Exception as error:  # a hostile pickle can make the unpickler raise anything
        told = ' '.join(f'{type(error).__name__} {error}'.split())
        raise CheckpointError(f'{path}: the pickle is corrupt: {told}') from None
    if not isinstance(tensors, dict) or not tensors:
        raise CheckpointError(f'{path}: holds {type(tensors).__name__}, not a dict of tensors')
    for name, tensor in dict.items(tensors):
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f'{path}: holds {type(tensor).__name__} under {name!r}, where a tensor should be'
            )
    return dict(tensors)


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
