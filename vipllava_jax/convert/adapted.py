"""Applies an adapter, quantization and a dtype to weights, leaf by leaf as they are read."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vipllava_jax.convert import tensors
from vipllava_jax.convert.adapters import Adapter, Pair
from vipllava_jax.convert.table import Leaf, rearrange_axes
from vipllava_jax.convert.tensors import Tensor
from vipllava_jax.model.quantized import Quantized, quantize
from vipllava_jax.model.weights import LoRA
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.sharding import mesh_of
from vipllava_jax.weight_options import WeightOptions
from vipllava_jax.weight_sharding import leaf_sharding, put


def with_options(
    weights: Iterable[tuple[str, Any]], options: WeightOptions, adapter: Adapter | None
) -> Iterable[tuple[str, Any]]:
    """Leaves as stored, or their shapes -> with the adapter of the options, then quantized or cast.

    Without an adapter or quantization the leaves do not change: the caller reads them in the options' dtype.
    """
    if adapter:
        dtype = None if options.quantize else options.dtype
        weights = with_adapter(weights, adapter, dtype, merge=options.merge)
    return quantize_leaves(weights, options.quantize, options.dtype)


def with_adapter(
    weights: Iterable[tuple[str, Any]],
    adapter: Adapter,
    dtype: DTypeLike | None = None,
    *,
    merge: bool = True,
) -> Iterator[tuple[str, Any]]:
    """Leaves as stored, or their shapes -> with an adapter merged into them, all floats in `dtype`.

    Pairs for quantized weights, or with `merge` false all pairs, are kept separate, in float32.
    """
    for path, leaf in weights:
        abstract = isinstance(jax.tree.leaves(leaf)[0], jax.ShapeDtypeStruct)
        if path in adapter.replacements and not abstract:
            leaf = _replacement(path, leaf, *adapter.replacements[path])
        fixed = isinstance(leaf, Quantized)
        pair = adapter.pairs.get(path)
        if pair and merge and not fixed:
            leaf = _with_pair(path, leaf, pair, abstract)
        if isinstance(leaf, LoRA) or not (fixed or dtype in (None, leaf.dtype)):
            leaf = jax.eval_shape(partial(_cast, dtype=dtype), leaf) if abstract else _cast(leaf, dtype=dtype)
        if pair and (fixed or not merge):
            leaf = _with_pair(path, leaf, pair, abstract)
        yield path, leaf


@partial(jax.jit, static_argnames='dtype')
def _cast(w: Any, dtype: DTypeLike | None) -> jax.Array:
    """A weight in `dtype` (None: unchanged), with its adapter merged."""
    return w.astype(dtype or w.dtype)


def _with_pair(path: str, base: Any, pair: Pair, abstract: bool) -> LoRA:
    """A leaf, or its shape, with its pair, transposed from the file's [R, in] and [out, R]."""
    (rank, _), ours, n = pair.a.shape, pair.leaf.shapes[1], pair.leaf.contracted
    into, out = (*ours[:n], rank), (rank, *ours[n:])
    a: Any
    b: Any
    a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (into, out))
    found = LoRA(base, a, b, pair.scale)
    if abstract:
        return found
    at = _sharding(path, found, base)
    a = put(_array(pair.a).T.reshape(into).astype(np.float32), at.a)
    b = put(_array(pair.b).T.reshape(out).astype(np.float32), at.b)
    return LoRA(base, a, b, pair.scale)


def _sharding(path: str, new: Any, leaf: Any) -> Any:
    """The shardings of `new`, of the same path as the leaf, on the mesh or the device of the leaf."""
    if mesh := mesh_of(leaf):
        return leaf_sharding(path, new, mesh)
    return jax.tree.map(lambda _: jax.tree.leaves(leaf)[0].sharding, new)


def _replacement(path: str, leaf: Any, row: Leaf, tensor: Tensor) -> Any:
    """A tensor of a file, with the layout, dtype and device of the leaf that it replaces."""
    array = rearrange_axes(_array(tensor), row.layout, dict(row.sizes))
    x = put(array, _sharding(path, array, leaf))
    if isinstance(leaf, Quantized):
        return quantize(x, row.contracted, leaf.dtype.name)
    return x.astype(leaf.dtype)


def _array(tensor: Tensor) -> np.ndarray:
    return tensors.read_tensor(tensor, memoryview(bytearray(tensor.span)))
