"""Biases of token sequences: numbers that are added to the logits of the tokens that would complete them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from vipllava_jax.inputs.padding import pad_ids, power_of_two

Biases = Sequence[tuple[Sequence[int], float]]  # (ids, bias) of each sequence


@struct.dataclass
class TokenBiases:
    """The biases of each row: of W sequences with up to L ids; a length of 0 is no sequence."""

    ids: Array  # BWL int32; the last id of a sequence is the one whose logit is biased
    lengths: Array  # BW int32
    bias: Array  # BW float32


def token_biases(biases: Biases, B: int) -> TokenBiases:
    """The same biases for B rows; W and L are rounded up to powers of two, so that lists share programs."""
    lengths = [len(ids) for ids, _ in biases]
    L = power_of_two(max(lengths, default=1))
    unused = power_of_two(len(biases), 8) - len(biases)
    fields = (
        pad_ids([*(ids for ids, _ in biases), *[()] * unused], L, 0),
        np.array(lengths + [0] * unused, np.int32),
        np.array([bias for _, bias in biases] + [0] * unused, np.float32),
    )
    # jnp.asarray would compile a program for each shape.
    return TokenBiases(*(jax.device_put(np.tile(x, (B, *[1] * x.ndim))) for x in fields))


def bias_of(biases: TokenBiases, ids: Array, lengths: Array, V: int) -> Array:
    """The sum of the biases of the sequences that each token would complete, BV.

    `ids` BS are those so far, of which the first `lengths` B count.
    """
    B, W, L = biases.ids.shape
    n = jnp.arange(L - 1)
    before = biases.lengths[:, :, None] - 1  # BW1, the number of ids before the last
    slots = lengths[:, None, None] - before + n  # of the newest ids, BW(L-1)
    newest = jnp.take_along_axis(ids, jnp.maximum(slots, 0).reshape(B, -1), axis=1).reshape(B, W, L - 1)
    matches = ((biases.ids[:, :, :-1] == newest) | (n >= before)).all(axis=-1)
    matches &= (biases.lengths > 0) & (biases.lengths - 1 <= lengths[:, None])
    last = jnp.take_along_axis(biases.ids, jnp.maximum(before, 0), axis=-1)[:, :, 0]
    bias = jnp.where(matches, biases.bias, 0)
    return jnp.zeros((B, V)).at[jnp.arange(B)[:, None], last].add(bias)
