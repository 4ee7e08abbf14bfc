"""Finds the tokens that would repeat a sequence of ids (n-gram), without comparing whole sequences per step.

For each slot of a row we keep the number of ids directly before it that equal the newest ids of the row:

    ids      a b c a b      slot 2 holds c: 'a b' before it equals the newest ids, so its number is 2, and
    numbers  0 0 2 0 0      with n = 3 the token c would complete 'a b c' a second time.

After a new id t, the number of a slot follows from that of the slot before it. Paulus et al. (2018) ban
repeated sequences, of three words, in beam search.
"""

import jax
import jax.numpy as jnp
from jax import Array


def repeats_of(ids: Array, lengths: Array, longest: Array | int) -> Array:
    """The numbers BS for ids BS, of which the first `lengths` B count; no number exceeds `longest`."""

    def compare(n: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        equal, numbers = carry
        newest = jnp.take_along_axis(ids, jnp.maximum(lengths - 1 - n, 0)[:, None], axis=1)
        equal &= (jnp.roll(ids, n + 1, axis=1) == newest) & (slots > n) & (lengths > n)[:, None]
        return equal, numbers + equal

    S = ids.shape[1]
    slots = jnp.arange(S)
    start = jnp.ones(ids.shape, bool), jnp.zeros(ids.shape, jnp.int32)
    return jax.lax.fori_loop(0, jnp.minimum(longest, S), compare, start)[1]


def add_id(numbers: Array, ids: Array, tokens: Array) -> Array:
    """The numbers BS after the ids `tokens` B were added to the rows `ids` BS."""
    before = jnp.roll(ids, 1, axis=1) == tokens[:, None]
    return jnp.where(before, jnp.roll(numbers, 1, axis=1) + 1, 0).at[:, 0].set(0)


def repeated(numbers: Array, ids: Array, lengths: Array, n: Array, V: int) -> Array:
    """Whether each token, BV, would repeat a sequence of `n` B ids; never where n is 0."""
    B, S = ids.shape
    found = (numbers >= n[:, None] - 1) & (jnp.arange(S) < lengths[:, None]) & (n > 0)[:, None]
    rows = jnp.arange(B)[:, None]
    return jnp.zeros((B, V), bool).at[rows, ids].max(found, mode='drop')
