"""Reads and writes vipllava.json, which lists the dtype, shape and checksum of each array of a folder."""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from vipllava_jax.files import read_json, write_json
from vipllava_jax.messages import CheckpointError, brief, printable
from vipllava_jax.version import __version__
from vipllava_jax.weight_options import FLOATS

MARK = 'vipllava.json'
FORMAT = 3  # format 2 added quantized weights, 3 int4; a folder gets the lowest format that it needs
TYPES = ('float32', 'float16', 'bfloat16', 'int8', 'int32')  # the last two are those of quantized values
PATH = re.compile(r'[A-Za-z0-9_]{1,64}(/[A-Za-z0-9_]{1,64}){0,7}')
MAX_ARRAYS = 10_000  # several times the number of arrays of the largest model
LARGEST = 4 << 20  # maximum size of the file in bytes
LARGEST_AXIS = 1 << 31
CHECKSUM = re.compile(r'[0-9a-f]{16}')


class Manifest(NamedTuple):
    """The validated content of a vipllava.json."""

    arrays: dict[str, Any]  # the shape and dtype of every stored array, by its path
    checksums: dict[str, str]  # by the same paths; empty in folders that older versions wrote


def write_manifest(
    folder: Path,
    shapes: Mapping[str, Any],
    arrays: Mapping[str, Any],
    checksums: dict[str, str],
) -> None:
    """Writes the vipllava.json of a folder from the shapes of its leaves and stored arrays, by path."""
    from vipllava_jax.model.quantized import Int4, Int8

    types = {type(leaf) for leaf in shapes.values()}
    content = {
        'format': 3 if Int4 in types else 2 if Int8 in types else 1,
        'version': __version__,
        'params': {path: (leaf.dtype.name, list(leaf.shape)) for path, leaf in arrays.items()},
        'checksums': {path: checksums[path] for path in arrays},
    }
    write_json(folder / MARK, content)


def read_manifest(folder: Path) -> Manifest:
    """Reads the vipllava.json of a folder; raises CheckpointError, which names the invalid entry."""
    file = folder / MARK
    content = read_json(file, limit=LARGEST)
    if content.get('format') not in range(1, FORMAT + 1):
        writer = printable(str(content.get('version'))[:200], 20)
        raise CheckpointError(
            f'{file}: format {brief(content.get("format"))} of vipllava-jax {writer}; this is '
            f'{__version__} and reads formats 1 to {FORMAT}: upgrade it, or convert the checkpoint again'
        )
    listed = content.get('params')
    if not isinstance(listed, dict) or not 0 < len(listed) <= MAX_ARRAYS:
        raise CheckpointError(f'{file}: params: expected an object of arrays, found {brief(listed)}')
    arrays = {path: _shape(file, path, entry) for path, entry in listed.items()}
    checksums = content.get('checksums', {})
    if not isinstance(checksums, dict):
        raise CheckpointError(
            f'{file}: checksums: expected an object, found {brief(checksums)}; copy it again'
        )
    for path, value in checksums.items():
        if not isinstance(value, str) or not CHECKSUM.fullmatch(value):
            raise CheckpointError(
                f'{file}: checksums: {brief(path)}: {brief(value)} is not a checksum; copy it again'
            )
    return Manifest(arrays, checksums)


def check_complete(folder: Path, manifest: Manifest) -> None:
    """Raises CheckpointError unless the manifest has a checksum for every array, or none at all."""
    if manifest.checksums and (unmatched := sorted(manifest.checksums.keys() ^ manifest.arrays.keys())):
        raise CheckpointError(
            f'{folder / MARK}: checksums do not agree with params on {brief(unmatched[0])}; copy it again'
        )


def _shape(file: Path, path: str, entry: Any) -> Any:
    """The shape and dtype in an entry of `params`; raises CheckpointError if the entry is invalid."""
    import jax
    import jax.numpy as jnp

    if not PATH.fullmatch(path):
        raise CheckpointError(f'{file}: lists no params: {brief(path)} is not the path of a weight')
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in TYPES or not _sizes(entry[1]):
        raise CheckpointError(
            f'{file}: lists no params: {path}: expected a type ({", ".join(TYPES)}) and a '
            f'shape, found {brief(entry)}; convert it again'
        )
    return jax.ShapeDtypeStruct(tuple(entry[1]), jnp.dtype(entry[0]))


def _sizes(shape: Any) -> bool:
    """Whether a value is a valid shape of a weight."""
    return (
        isinstance(shape, list)
        and len(shape) <= 8
        and all(type(n) is int and 0 <= n <= LARGEST_AXIS for n in shape)
    )


def split_quantized(leaves: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yields the leaves, with each quantized one replaced by its two arrays, `values` and `scale`."""
    from vipllava_jax.model.quantized import Quantized

    for path, leaf in leaves:
        if isinstance(leaf, Quantized):
            yield f'{path}/values', leaf.values
            yield f'{path}/scale', leaf.scale
        else:
            yield path, leaf


def join_quantized(leaves: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """The inverse of `split_quantized`, for arrays in any order; raises ValueError for an incomplete leaf."""
    from vipllava_jax.model.quantized import from_values_and_scale

    waiting: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves:
        weight, _, part = path.rpartition('/')
        if part not in ('values', 'scale'):
            yield path, leaf
            continue
        waiting.setdefault(weight, {})[part] = leaf
        if len(waiting[weight]) == 2:
            yield weight, from_values_and_scale(**waiting.pop(weight))
    if waiting:
        raise ValueError(f'{next(iter(waiting))} has only one of values and scale')


def join_shapes(folder: Path, shapes: dict[str, Any]) -> dict[str, Any]:
    """Joins shapes of values and scales into shapes of quantized leaves; other shapes stay as they are."""
    from vipllava_jax.model.quantized import Quantized

    try:
        stored = dict(join_quantized(shapes.items()))
        for path, leaf in stored.items():
            if isinstance(leaf, Quantized):
                _check_quantized(path, leaf)
            elif leaf.dtype.name not in FLOATS:
                raise ValueError(f'{path} is of type {leaf.dtype.name}')
    except ValueError as error:
        raise CheckpointError(f'{folder / MARK}: lists no params ({error}); convert it again') from None
    return stored


def _check_quantized(path: str, leaf: Any) -> None:
    """Raises ValueError unless values and scale have the shapes and dtypes of one quantized weight."""
    from vipllava_jax.model.params import weight_axes

    found = (*((x.shape, x.dtype.name) for x in (leaf.values, leaf.scale)),)
    try:
        matches = found == _quantized_shapes(leaf.shape, weight_axes(path).quantized_axes, leaf.dtype.name)
    except (ValueError, TypeError, IndexError, ArithmeticError):  # from impossible shapes
        matches = False
    if not matches:
        raise ValueError(f'{path}: the shapes or dtypes of its values and its scale do not match')


@lru_cache
def _quantized_shapes(shape: tuple[int, ...], axes: int, dtype: str) -> tuple[tuple[Any, str], ...]:
    """The shapes and dtypes of the values and scale of a quantized weight with `axes` contracted axes."""
    import jax

    from vipllava_jax.model.quantized import quantize

    weight = jax.ShapeDtypeStruct(shape, 'float32')
    found = jax.eval_shape(partial(quantize, contracted=axes, dtype=dtype), weight)
    return (*((x.shape, x.dtype.name) for x in (found.values, found.scale)),)
