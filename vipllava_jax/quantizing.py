"""Quantizes the large weights of the decoder, leaf by leaf."""

import dataclasses
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import jax

from vipllava_jax.model.params import weight_axes
from vipllava_jax.model.quantized import Quantized, quantize
from vipllava_jax.model.weights import LoRA


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

    @partial(jax.jit, static_argnames='axes')
    def convert(w: Any, axes: int) -> Any:
        return quantize(w, axes, dtype) if axes else w.astype(others or w.dtype)

    for path, leaf in leaves:
        w = leaf.base if isinstance(leaf, LoRA) else leaf
        if isinstance(w, Quantized):
            yield path, leaf
            continue
        convert_at = partial(convert, axes=weight_axes(path).quantized_axes)
        w = jax.eval_shape(convert_at, w) if isinstance(w, jax.ShapeDtypeStruct) else convert_at(w)
        yield path, dataclasses.replace(leaf, base=w) if isinstance(leaf, LoRA) else w
