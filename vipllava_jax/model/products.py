"""Products with quantized weights, which read the quantized values directly."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from vipllava_jax.model.equations import axes, output_axes_first, precision
from vipllava_jax.model.quantized import Int4, Quantized
from vipllava_jax.sharding import per_device

MAX_INPUTS_AS_BYTES = 4096  # int8: with more inputs per channel, four values are read as one int32
MAX_CHANNELS_IN_ONE_SUM = 8192  # for one row: with more, two halves of the channels are summed in parallel
MAX_ROWS_OF_INT4 = 4  # int4: up to this many rows of x, `_product_by_sum` computes the product


def product(equation: str, x: Array, w: Quantized, dtype: jnp.dtype) -> Array:
    """The product of x and w by the equation, in `dtype`, accumulated in float32."""
    by_dot = functools.partial(_product_by_dot, output_axes_first(equation), dtype)
    is_small = 0 < x.size <= (MAX_ROWS_OF_INT4 if isinstance(w, Int4) else 1) * w.fan_in

    def local_product(x: Array, values: Array, scale: Array) -> Array:
        part = type(w)(values, scale)
        if is_small:
            by_sum = functools.partial(_product_by_sum, dtype)
            return lax.platform_dependent(x, part, cuda=by_sum, default=by_dot)
        return by_dot(x, part)

    letters, _, contracted, output, result = axes(equation)
    groups = contracted[: w.scale.ndim - w.output_axes]  # flattened contracted axes, the outermost divided
    operands = f'{letters},{output}{contracted},{output}{groups}'
    return per_device(local_product, f'{operands}->{result}')(x, w.values, w.scale)


def _product_by_dot(equation: str, dtype: jnp.dtype, x: Array, w: Quantized) -> Array:
    """The product as a matrix multiplication; int8 weights are scaled after it, int4 weights before it."""
    dot = functools.partial(jnp.einsum, equation, precision=precision(x))
    if isinstance(w, Int4):
        # The barriers keep XLA from dequantizing all layers in advance, which would take the memory of the
        # unquantized model.
        x, w = lax.optimization_barrier((x, w))
        return dot(x, lax.optimization_barrier(w.output_axes_first(x.dtype)), preferred_element_type=dtype)
    # Unscaled sums may overflow float16. They fit in bfloat16, which is faster to write than float32.
    wide = jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype
    return (dot(x, w.values.astype(x.dtype), preferred_element_type=wide) * w.scale).astype(dtype)


def _product_by_sum(dtype: jnp.dtype, x: Array, w: Quantized) -> Array:
    """The product for one or a few rows of x, as a reduction; a dot would pad the rows to tiles of 16."""
    channels = w.size // w.fan_in
    rows = x.reshape(-1, w.fan_in)
    rows = lax.optimization_barrier(rows).astype(jnp.float32)  # otherwise every sum would recompute x
    values, scale = w.values.reshape(channels, -1), w.scale.reshape(channels, -1)
    halved = len(rows) == 1 and channels > MAX_CHANNELS_IN_ONE_SUM and channels % 2 == 0
    if isinstance(w, Int4):
        y = _row_sums(_int4_terms, rows, halved, values, scale)
    elif w.fan_in > MAX_INPUTS_AS_BYTES and w.fan_in % 4 == 0:
        y = _row_sums(_int8_terms_by_word, rows, False, values) * scale[:, 0]
    else:
        y = _row_sums(lambda row, values: values * row, rows, halved, values) * scale[:, 0]
    contracted = w.values.ndim - w.output_axes
    return y.astype(dtype).reshape(*x.shape[: x.ndim - contracted], *w.values.shape[: w.output_axes])


def _row_sums(terms: Callable[..., Array], rows: Array, halved: bool, *arrays: Array) -> Array:
    """The sums of the terms of each row and channel -> rows by channels.

    `terms` maps one row and the arrays, whose first axis is the channels, to terms that are added along axis
    1. One kernel computes all sums, so that the arrays are read once. With `halved`, it works on two halves
    of the channels at the same time, which keeps more loads in flight.
    """
    middle = len(arrays[0]) // 2
    halves = [slice(middle), slice(middle, None)] if halved else [slice(None)]
    all_terms = [terms(row, *(x[half] for x in arrays)) for row in rows for half in halves]
    zeros = [jnp.float32(0) for _ in all_terms]
    sums = lax.reduce(all_terms, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], (1,))
    return jnp.concatenate(sums).reshape(len(rows), -1)


def _int8_terms_by_word(row: Array, values: Array) -> Array:
    """A row and int8 values -> their products, added per word: four values are read as one int32 word."""
    words = lax.bitcast_convert_type(values.reshape(len(values), -1, 4), jnp.int32)
    return sum(((words << 24 - 8 * i) >> 24) * row[i::4] for i in range(4))  # type: ignore[return-value]


def _int4_terms(row: Array, words: Array, scale: Array) -> Array:
    """A row and int4 words -> their products, added per word of eight and multiplied by the group's scale."""
    products = sum(((words << 28 - 4 * i) >> 28) * row[i::8] for i in range(8))
    grouped = products.reshape(*scale.shape, -1) * scale[..., None]  # type: ignore[union-attr]
    return grouped.reshape(words.shape)
