"""Quantizes the large weights of the decoder, leaf by leaf."""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from vipllava_jax.model.params import weight_axes
from vipllava_jax.model.quantized import Int4, Quantized, quantize
from vipllava_jax.model.weights import LoRA, WeightAxes
from vipllava_jax.sharding import mesh_of
from vipllava_jax.weight_sharding import divisible_group, sharding_by_axes


def quantize_leaves(
    leaves: Iterable[tuple[str, Any]], dtype: str | None, others: Any = None
) -> Iterator[tuple[str, Any]]:
    """Leaves or their shapes -> the same with the large weights of the decoder quantized to `dtype`.

    `dtype` is 'int8' or 'int4', or None for no change. Weights that are not quantized are cast to the dtype
    `others` if it is given. Leaves that are already quantized do not change.
    """

    if dtype is None:
        yield from leaves
        return

    for path, leaf in leaves:
        w = leaf.base if isinstance(leaf, LoRA) else leaf
        if isinstance(w, Quantized):
            yield path, leaf
            continue
        axes, mesh = weight_axes(path), mesh_of(w)
        placed = (axes, mesh) if mesh else None
        new_dtype = dtype if axes.quantizable else np.dtype(others or w.dtype).name
        convert = partial(_convert, dtype=new_dtype, axes=axes.quantized_axes, placed=placed)
        w = jax.eval_shape(convert, w) if isinstance(w, jax.ShapeDtypeStruct) else convert(w)
        if mesh and mesh.is_multi_process:
            jax.block_until_ready(w)  # a process that ran ahead could block the devices of the others
        yield path, dataclasses.replace(leaf, base=w) if isinstance(leaf, LoRA) else w


@partial(jax.jit, static_argnames=('dtype', 'axes', 'placed'))
def _convert(w: Any, *, dtype: str, axes: int, placed: tuple[WeightAxes, Mesh] | None) -> Any:
    """A weight, quantized if it has contracted axes, or cast; on a mesh, with the sharding of its letters."""
    new = quantize(w, axes, dtype) if axes else w.astype(dtype)
    if placed is None:
        return new
    if isinstance(new, Int4):
        new = quantize(w, axes, dtype, divisible_group(placed[0], new, placed[1]))
    return lax.with_sharding_constraint(new, sharding_by_axes(placed[0], new, placed[1]))
