"""Biases of token sequences: numbers that are added to the logits of the tokens that would complete them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

Biases = Sequence[tuple[Sequence[int], float]]  # (ids, bias) of each sequence


@struct.dataclass
class TokenBiases:
    """The biased sequences of each row; zeros in every field are no sequence."""

    ids: Array  # BWL int32; the last id of a sequence is the one whose logit is biased
    lengths: Array  # BW int32
    bias: Array  # BW float32


def token_biases(biases: Biases, B: int) -> TokenBiases:
    """The same biases for B rows; W and L are rounded up to powers of two, so that lists share programs."""
    W = _power_of_two(len(biases), 8)
    L = _power_of_two(max((len(ids) for ids, _ in biases), default=1), 1)
    rows = np.zeros((W, L), np.int32)
    lengths, bias = np.zeros(W, np.int32), np.zeros(W, np.float32)
    for w, (ids, value) in enumerate(biases):
        rows[w, : len(ids)] = ids
        lengths[w], bias[w] = len(ids), value
    return TokenBiases(*(jnp.asarray(np.tile(x, (B, *[1] * x.ndim))) for x in (rows, lengths, bias)))


def _power_of_two(n: int, smallest: int) -> int:
    return max(smallest, 1 << max(n - 1, 0).bit_length())


def bias_of(biases: TokenBiases, ids: Array, lengths: Array, V: int) -> Array:
    """The sum of the biases of the sequences that each token would complete, BV.

    `ids` BS are those so far, of which the first `lengths` B count.
    """
    B, W, L = biases.ids.shape
    n = jnp.arange(L - 1)
    prefix = biases.lengths[:, :, None] - 1  # BW1, the number of ids before the last
    slots = lengths[:, None, None] - prefix + n  # of the newest ids, BW(L-1)
    newest = jnp.take_along_axis(ids, jnp.maximum(slots, 0).reshape(B, -1), axis=1).reshape(B, W, L - 1)
    matches = ((biases.ids[:, :, :-1] == newest) | (n >= prefix)).all(axis=-1)
    matches &= (biases.lengths > 0) & (biases.lengths - 1 <= lengths[:, None])
    last = jnp.take_along_axis(biases.ids, jnp.maximum(prefix, 0), axis=-1)[:, :, 0]
    bias = jnp.where(matches, biases.bias, 0)
    return jnp.zeros((B, V)).at[jnp.arange(B)[:, None], last].add(bias)
