"""Writes files in PyTorch's formats, valid or not, without PyTorch."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

Q = 'base_model.model.model.language_model.layers.0.self_attn.q_proj'  # peft's name of a layer
CODES = {
    **{'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'int64': 'I64', 'int8': 'I8', 'uint8': 'U8'},
    **{'float8_e4m3fn': 'F8_E4M3'},
}
STORAGES = {
    'float32': 'FloatStorage',
    'float16': 'HalfStorage',
    'bfloat16': 'BFloat16Storage',
    'int64': 'LongStorage',
}


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], **changed: dict) -> None:
    """Writes a safetensors file, with changed header entries if given."""
    header, end = {}, 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        entry = {'dtype': CODES[array.dtype.name], 'shape': array.shape, 'data_offsets': [begin, end]}
        header[name] = entry | changed.get(name, {})
    text = json.dumps(header).encode()
    path.write_bytes(
        struct.pack('<Q', len(text)) + text + b''.join(array.tobytes() for array in tensors.values())
    )


def string(text: str) -> bytes:
    return b'X' + struct.pack('<I', len(text.encode())) + text.encode()


def integer(n: int) -> bytes:
    raw = n.to_bytes(9, 'little', signed=True)
    return b'\x8a' + bytes([len(raw)]) + raw


def tuple_of(*parts: bytes) -> bytes:
    return b'(' + b''.join(parts) + b't'


def storage(key: str, name: str, length: int) -> bytes:
    parts = (
        string('storage'),
        f'ctorch\n{name}\n'.encode(),
        string(key),
        string('cpu'),
        integer(length),
    )
    return tuple_of(*parts) + b'Q'


def tensor(held: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """The pickle program of a call that rebuilds a tensor from a storage."""
    shapes = (tuple_of(*map(integer, shape)), tuple_of(*map(integer, strides)))
    args = tuple_of(held, integer(offset), *shapes, b'\x89', b'ccollections\nOrderedDict\n)R')
    return b'ctorch._utils\n_rebuild_tensor_v2\n' + args + b'R'


def pickled(entries: dict[str, bytes]) -> bytes:
    """The pickle program of a dict."""
    return b'\x80\x02}(' + b''.join(string(name) + value for name, value in entries.items()) + b'u.'


def write_archive(
    path: Path, program: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', program)
        archive.writestr('archive/byteorder', 'little')
        for key, data in storages.items():
            archive.writestr(f'archive/data/{key}', data)


def write_bin(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a file like torch.save, with a separate storage for every tensor."""
    entries = {}
    for i, (name, array) in enumerate(tensors.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        entries[name] = tensor(storage(str(i), STORAGES[array.dtype.name], array.size), array.shape, strides)
    write_archive(
        path, pickled(entries), {str(i): array.tobytes('A') for i, array in enumerate(tensors.values())}
    )


def pair(name: str, out: int, into: int, rng, rank: int = 2, suffix: str = '') -> dict[str, np.ndarray]:
    """The A and B matrices of an adapter by peft's names."""
    halves = {'A': (rank, into), 'B': (out, rank)}
    return {f'{name}.lora_{h}{suffix}.weight': np.float32(rng.standard_normal(s)) for h, s in halves.items()}


def write_adapter(folder, tensors: dict[str, np.ndarray], format: str = 'safetensors', **fields) -> None:
    folder.mkdir(exist_ok=True)
    (write_bin if format == 'bin' else lambda path, x: save_file(x, path))(
        folder / f'adapter_model.{format}', tensors
    )
    (folder / 'adapter_config.json').write_text(
        json.dumps({'r': 2, 'lora_alpha': 6, 'peft_type': 'LORA', **fields})
    )
