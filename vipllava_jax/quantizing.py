"""Quantizes the large weights of the decoder, leaf by leaf."""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax
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

    @partial(jax.jit, static_argnames=('axes', 'placed'))
    def convert(w: Any, axes: int, placed: tuple[WeightAxes, Mesh] | None) -> Any:
        new = quantize(w, axes, dtype) if axes else w.astype(others or w.dtype)
        if placed is None:
            return new
        if isinstance(new, Int4):
            new = quantize(w, axes, dtype, divisible_group(placed[0], new, placed[1]))
        return lax.with_sharding_constraint(new, sharding_by_axes(placed[0], new, placed[1]))

    for path, leaf in leaves:
        w = leaf.base if isinstance(leaf, LoRA) else leaf
        if isinstance(w, Quantized):
            yield path, leaf
            continue
        axes, mesh = weight_axes(path), mesh_of(w)
        convert_at = partial(convert, axes=axes.quantized_axes, placed=(axes, mesh) if mesh else None)
        w = jax.eval_shape(convert_at, w) if isinstance(w, jax.ShapeDtypeStruct) else convert_at(w)
        yield path, dataclasses.replace(leaf, base=w) if isinstance(leaf, LoRA) else w
