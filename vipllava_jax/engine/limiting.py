"""The compiled programs for answers that have a format: limited steps, and the return to earlier tokens."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vipllava_jax.engine.programs import Lane, bits_of, pin_cache
from vipllava_jax.engine.row_settings import RowSettings
from vipllava_jax.generation.logits.next_token import NewTokens, reported
from vipllava_jax.generation.logits.repeats import repeats_of
from vipllava_jax.generation.state import pin_rows
from vipllava_jax.sharding import mesh_of, pin

FEW = 8  # rows of one call of these programs


def all_ids(B: int, V: int) -> np.ndarray:
    """The set of all ids for B rows, BW uint32 with a bit for each."""
    return np.full((B, -(-V // 32)), 0xFFFFFFFF, np.uint32)


def few_rows(rows: Sequence[int], count: int) -> np.ndarray:
    """The numbers of rows of `count`, padded to FEW with different numbers of rows that do not exist."""
    numbers = np.arange(count, count + FEW, dtype=np.int32)
    numbers[: len(rows)] = rows
    return numbers


def few_numbers(numbers: Sequence[int]) -> np.ndarray:
    """Numbers, padded to FEW int32 with zeros."""
    return np.array([*numbers, *[0] * (FEW - len(numbers))], np.int32)


def few_sets(sets: Sequence[np.ndarray], V: int) -> np.ndarray:
    """Sets of ids W uint32, padded to FEW×W with sets of all ids."""
    return np.stack([*sets, *all_ids(FEW - len(sets), V)])


@jax.jit
def allow_only(logits: Array, rows: Array, allowed: Array) -> Array:
    """Logits BV -> the same with -inf in `rows` K for ids that are not `allowed`, KW uint32, a bit for each.

    Rows that the logits do not have are dropped.
    """
    most = jnp.where(bits_of(allowed, logits.shape[-1]), jnp.inf, -jnp.inf)
    limited = logits.at[rows].min(most, mode='drop', unique_indices=True)
    return pin(limited, 'BV', mesh_of(logits))


@partial(jax.jit, static_argnames='top')
def report(logits: Array, tokens: Array, *, top: int) -> NewTokens:
    """What is reported of tokens B with the logits BV of the model, as if nothing had limited them."""
    return pin_rows(reported(tokens, logits, logits, top), mesh_of(logits))


@partial(jax.jit, donate_argnames=('lane', 'settings'))
def rewind_rows(
    lane: Lane, settings: RowSettings, rows: Array, tokens: Array, positions: Array
) -> tuple[Lane, RowSettings]:
    """A lane and its settings, which are donated, with earlier tokens as the newest of its `rows` K.

    `positions` K are those of the tokens. Rows that the lane does not have are dropped.
    """

    def put(x: Array, new: Array) -> Array:
        return x.at[rows].set(new, mode='drop', unique_indices=True)

    longest = settings.processing.no_repeat_ngram_size.max() - 1
    repeats = repeats_of(settings.ids.at[rows].get(mode='clip'), positions + 1, longest)
    settings = dataclasses.replace(settings, repeats=put(settings.repeats, repeats))
    mesh = mesh_of(lane)
    newest = pin_rows((put(lane.tokens, tokens), put(lane.positions, positions)), mesh)
    return Lane(pin_cache(lane.cache, mesh), *newest), pin_rows(settings, mesh)
