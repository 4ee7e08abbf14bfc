"""The state of decoding: every leaf leads with B, so that rows can be taken out and inserted."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.typing import ArrayLike

from vipllava_jax.generation.logits.processing import Processing
from vipllava_jax.generation.logits.sampling import Sampling
from vipllava_jax.model.llama import Cache
from vipllava_jax.sharding import mesh_of, pin

EOS_COLUMNS = 8  # the columns of `State.eos` are a multiple of this, so that other end ids compile nothing
NO_ID = -1  # fills the unused columns of `State.eos`


@struct.dataclass
class State:
    """The state of decoding. Every leaf leads with B; slot s of a row belongs to its position s."""

    cache: Cache  # 2L times BSKH
    ids: Array  # BS int32, the prompt and the answer; arbitrary after the newest token
    tokens: Array  # B int32, the newest token of each row, which is in `ids` but not yet in the cache
    positions: Array  # B int32, the positions of these tokens
    done: Array  # B bool, whether the row has ended
    eos: Array  # BE int32, the ids that end each row, and NO_ID
    sampling: Sampling | None  # None: every row is greedy
    processing: Processing | None = None  # None: no row has processors
    repeats: Array | None = None  # BS int32, as returned by `repeats_of`; None without processors

    @property
    def slots(self) -> int:
        return self.ids.shape[1]


def map_state(f: Callable[[Any, str], Any], state: State) -> State:
    """Applies f to each leaf of a state and its letters, in which a dot is an axis that no mesh divides."""

    def apply(path: Any, x: Any) -> Any:
        return f(x, 'BSKH' if path[0].name == 'cache' else row_letters(x))

    return jax.tree_util.tree_map_with_path(apply, state)


def row_letters(x: Any) -> str:
    """The letters of an array whose first axis is the batch, and whose other axes no mesh divides."""
    return 'B' + '.' * (x.ndim - 1)


def pin_state(state: State, mesh: Any) -> State:
    """The state with the shardings of its letters (under jit), which all programs that take it expect."""
    return map_state(partial(pin, mesh=mesh), state)


def pin_rows(tree: Any, mesh: Any) -> Any:
    """Arrays whose first axis is the batch, with their rows divided over the mesh (under jit)."""
    return jax.tree.map(lambda x: pin(x, row_letters(x), mesh), tree)


def eos_rows(eos: Sequence[int], B: int) -> np.ndarray:
    """The ids that end an answer -> BE int32 for `State.eos`; E is a multiple of EOS_COLUMNS."""
    E = max(-(-len(eos) // EOS_COLUMNS), 1) * EOS_COLUMNS
    row = np.full(E, NO_ID, np.int32)
    row[: len(eos)] = eos
    return np.tile(row, (B, 1))


def write_ids(ids: Array, tokens: Array, start: Array) -> Array:
    """Writes tokens BT into ids BS from slot `start` B of each row; drops what lies past the last slot."""

    def write_row(row: Array, new: Array, first: Array) -> Array:
        return row.at[first + jnp.arange(len(new))].set(new, mode='drop')

    return jax.vmap(write_row)(ids, tokens, start)


def take(state: State, rows: ArrayLike) -> State:
    """The state of some rows, in the order of `rows`, a sequence of indices; `state` stays valid.

    Raises ValueError if an index is out of range.
    """
    indices = np.asarray(rows)
    if indices.ndim != 1 or indices.dtype.kind not in 'iu' or not len(indices):
        raise ValueError(f'rows are {rows!r}, but must be a list of row indices')
    B = len(state.ids)
    for row in indices:
        if not 0 <= row < B:
            raise ValueError(f'there is no row {row} in a state of {B} rows: they are 0 to {B - 1}')
    return _take(state, indices)


@jax.jit
def _take(state: State, rows: Array) -> State:
    return pin_state(jax.tree.map(lambda x: x[rows], state), mesh_of(state))


def insert(state: State, row: int, other: State) -> State:
    """Replaces the rows of `state` from `row` on by those of `other` -> the new state; `state` is donated.

    `other` may have fewer slots, end ids, and biased sequences of tokens. Raises ValueError if it has more,
    if its rows do not fit, or if only one of the states is sampled or has processors.
    """
    B, b = len(state.ids), len(other.ids)
    if not 0 <= row <= B - b:
        raise ValueError(f'{b} rows do not fit at row {row} of a state of {B} rows')
    for name, size, limit in (
        ('slots', other.slots, state.slots),
        ('end ids', other.eos.shape[1], state.eos.shape[1]),
    ):
        if size > limit:
            raise ValueError(f'a row of {size} {name} does not fit a state of {limit}: create a larger state')
    if (state.sampling is None) != (other.sampling is None):
        names = ['sampled' if x.sampling else 'greedy' for x in (other, state)]
        raise ValueError(
            f'a {names[0]} row does not fit a {names[1]} state: a greedy row in a sampled state has a '
            'Sampling of temperature 0'
        )
    if (state.processing is None) != (other.processing is None):
        names = ['with' if x.processing else 'without' for x in (other, state)]
        raise ValueError(
            f'a row {names[0]} processors does not fit a state {names[1]}: a row that needs none in a state '
            'with processors has a Processing of neutral settings'
        )
    for (path, x), new in zip(
        jax.tree_util.tree_leaves_with_path(state.processing), jax.tree.leaves(other.processing), strict=True
    ):
        if any(size > limit for size, limit in zip(new.shape[1:], x.shape[1:], strict=True)):
            name = jax.tree_util.keystr(path, simple=True, separator='.')
            raise ValueError(
                f'a row whose {name} have the shape {new.shape[1:]} does not fit a state of {x.shape[1:]}: '
                'create the state with as many sequences, and as long ones'
            )
    return _insert(state, jnp.int32(row), other)


@partial(jax.jit, donate_argnames='state')
def _insert(state: State, row: Array, other: State) -> State:
    E = state.eos.shape[1]
    eos = jnp.pad(other.eos, ((0, 0), (0, E - other.eos.shape[1])), constant_values=NO_ID)

    def write(x: Array, new: Array) -> Array:
        if x.ndim > 1:  # zeros in the remaining slots: otherwise a NaN of an earlier row would stay there
            sizes = (len(new), *x.shape[1:])
            new = jnp.pad(new, [(0, size - n) for size, n in zip(sizes, new.shape, strict=True)])
        return jax.lax.dynamic_update_slice_in_dim(x, new, row, axis=0)

    return pin_state(jax.tree.map(write, state, dataclasses.replace(other, eos=eos)), mesh_of(state))
