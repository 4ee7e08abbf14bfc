"""Converts our folders to ones that transformers loads: safetensors with the Hub's names, and an index."""

import dataclasses
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from vipllava_jax import checkpoint
from vipllava_jax.checkpoint import Checkpoint
from vipllava_jax.config import Config
from vipllava_jax.convert import adapters
from vipllava_jax.convert.adapted import with_options
from vipllava_jax.convert.adapters import Adapter
from vipllava_jax.convert.safetensors_files import TYPES
from vipllava_jax.convert.shards import rearrange
from vipllava_jax.convert.table import Leaf, leaves, reverse_layout
from vipllava_jax.convert.to_flax import Report, not_finite
from vipllava_jax.convert.torch_files import INDEXED, is_torch_folder
from vipllava_jax.files import naming, write_json
from vipllava_jax.folders import check_apart, check_no_other_files, new_folder
from vipllava_jax.hugging_face import to_hugging_face
from vipllava_jax.inputs.processor_files import PROCESSOR_FILES
from vipllava_jax.integrity import is_finite
from vipllava_jax.messages import CheckpointError
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.progress_bar import Progress
from vipllava_jax.sharding import on_cpu
from vipllava_jax.weight_options import WeightOptions

WRITTEN = (
    'model.safetensors',
    'model-*-of-*.safetensors',
    INDEXED[0],
    'config.json',
    'generation_config.json',
    *PROCESSOR_FILES,
)
CODES = {dtype: code for code, (dtype, _) in TYPES.items()}


class Entry(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def export(
    source: Path,
    target: Path,
    *,
    dtype: DTypeLike | None = None,
    adapter: Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Converts our folder to a new folder that transformers loads, with tokenizer and processor files.

    A vocabulary without a row for the image token, as in the authors' checkpoints, grows to a multiple of 64
    with rows that are the mean of the others. The adapter in the folder `adapter` is merged into the weights.
    Raises CheckpointError, and then leaves nothing behind.
    """
    _check_target(target, [source, adapter] if adapter else [source], overwrite)
    options = WeightOptions(dtype=dtype, adapter=adapter)
    began = time.monotonic()
    stored = checkpoint.open(source)
    cfg = stored.cfg
    _check_not_quantized(stored)
    pairs = adapters.read_adapter(adapter, cfg) if adapter else None
    grown, notes = _with_image_token(cfg)
    written = {leaf.path: leaf.shapes[0] for leaf in leaves(grown)}
    table = {leaf.path: leaf for leaf in leaves(cfg)}
    entries = [
        Entry(table[path].name, np.dtype(options.dtype or leaf.dtype), written[path])
        for path, leaf in stored.leaves.items()
    ]
    size = sum(entry.size for entry in entries)
    with new_folder(target, size, is_torch_folder, overwrite) as partial:
        arrays = _arrays(stored, options, pairs, table, written, progress)
        not_finite_names = _write_shards(partial, _shards(entries, max_shard_bytes), arrays, size)
        common = max({entry.dtype for entry in entries}, key=[entry.dtype for entry in entries].count)
        write_json(partial / 'config.json', to_hugging_face(grown) | {'torch_dtype': common.name})
        checkpoint.copy_files(source, partial)
    warnings = not_finite(not_finite_names, options.dtype)
    return Report(len(entries), size, time.monotonic() - began, (), notes, warnings)


def _check_target(target: Path, inputs: Iterable[Path], overwrite: bool) -> None:
    for folder in inputs:
        check_apart(Path(folder), target)
    if overwrite and is_torch_folder(target):
        check_no_other_files(target, WRITTEN)


def _check_not_quantized(stored: Checkpoint) -> None:
    if any(isinstance(leaf, Quantized) for leaf in stored.leaves.values()):
        raise CheckpointError(
            f'{stored.folder}: quantized weights cannot be exported to PyTorch; convert the folder that they '
            'were quantized from'
        )


def _with_image_token(cfg: Config) -> tuple[Config, tuple[str, ...]]:
    """A config whose vocabulary has a row for the image token, and a note if the vocabulary grew."""
    vocab = cfg.text.vocab
    if vocab > cfg.image_token:
        return cfg, ()
    rows = -(-(cfg.image_token + 1) // 64) * 64
    text = dataclasses.replace(cfg.text, vocab=rows)
    note = f'image token {cfg.image_token}: the vocabulary grew from {vocab} to {rows}; new rows are the mean'
    return dataclasses.replace(cfg, text=text), (note,)


def _arrays(
    stored: Checkpoint,
    options: WeightOptions,
    adapter: Adapter | None,
    table: Mapping[str, Leaf],
    written: Mapping[str, tuple[int, ...]],
    progress: Progress | None,
) -> Iterator[Array]:
    """The leaves of our folder, one by one, in the layout of the file."""
    cpu = on_cpu()
    leaves = ((path, jax.device_put(x, cpu)) for path, x in stored.stream(progress=progress))
    for path, array in with_options(leaves, options, adapter):
        leaf = table[path]
        x = rearrange(array, reverse_layout(leaf.layout), leaf.sizes, np.dtype(options.dtype or array.dtype))
        if missing := written[path][0] - len(x):
            mean = jnp.mean(x, axis=0, dtype=jnp.float32).astype(x.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(mean, (missing, len(mean)))])
        yield x


def _shards(entries: Iterable[Entry], limit: int) -> list[list[Entry]]:
    """Entries in order, grouped into shards of at most `limit` bytes, or of one larger entry."""
    shards: list[list[Entry]] = [[]]
    for entry in entries:
        if shards[-1] and sum(other.size for other in shards[-1]) + entry.size > limit:
            shards.append([])
        shards[-1].append(entry)
    return shards


def _write_shards(folder: Path, shards: list[list[Entry]], arrays: Iterator[Array], size: int) -> list[str]:
    """Writes arrays, given in the order of the shards' entries, and an index if there are several shards.

    Returns the names of the arrays that hold NaN or infinity.
    """
    homes: dict[str, str] = {}
    not_finite_names: list[str] = []
    for i, shard in enumerate(shards, 1):
        name = 'model.safetensors' if len(shards) == 1 else f'model-{i:05}-of-{len(shards):05}.safetensors'
        with naming(folder / name):
            not_finite_names += _write_shard(folder / name, shard, arrays)
        homes |= dict.fromkeys((entry.name for entry in shard), name)
    if len(shards) > 1:
        write_json(folder / INDEXED[0], {'metadata': {'total_size': size}, 'weight_map': homes})
    return not_finite_names


def _write_shard(path: Path, shard: list[Entry], arrays: Iterator[Array]) -> list[str]:
    """Writes a safetensors file; returns the names of its tensors that hold NaN or infinity."""
    not_finite_names = []
    with open(path, 'wb') as file:
        file.write(_header(shard))
        for entry, array in zip(shard, arrays, strict=False):
            data = np.asarray(array)
            file.write(data.reshape(-1).view(np.uint8).data)
            if not is_finite(data):
                not_finite_names.append(entry.name)
    return not_finite_names


def _header(shard: list[Entry]) -> bytes:
    """The header of a safetensors file with these tensors, in order."""
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    end = 0
    for entry in shard:
        begin, end = end, end + entry.size
        header[entry.name] = {
            'dtype': CODES[entry.dtype.name],
            'shape': entry.shape,
            'data_offsets': (begin, end),
        }
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # so that the tensors are aligned
    return len(text).to_bytes(8, 'little') + text
