"""Speculative decoding by prompt lookup: guesses the next tokens from the row itself, then checks them.

Answers about marks often quote the question: 'What is within the red rectangle?' - 'The object within the
red rectangle is …'. Each step looks for an earlier place in prompt and answer that has the row's newest ids
before it, takes the ids that follow there as a draft, and runs the model over all of them, which takes little
longer than for one token. The tokens are those of greedy decoding: a draft is kept as far as the model's most
likely tokens agree with it, and the token after that is the model's own.

The check is that of speculative decoding (Leviathan et al., 2023), the draft that of Saxena (2023).
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vipllava_jax.config import Config
from vipllava_jax.generation.logits.repeats import repeats_of
from vipllava_jax.generation.logits.sampling import most_likely
from vipllava_jax.generation.programs import is_end
from vipllava_jax.generation.state import State, pin_state, row_letters, write_ids
from vipllava_jax.model import vipllava
from vipllava_jax.model.llama import PrefixCache
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of, pin

LONGEST = 3  # of the newest ids, at most this many are compared with those before a place


class Checked(NamedTuple):
    """The tokens of several steps, of which the first `counts` of each step are part of the answer."""

    tokens: Array  # B x steps x T int32
    counts: Array  # B x steps int32, 0 after the end of a row


@partial(jax.jit, static_argnames=('cfg', 'steps', 'drafted'), donate_argnames='state')
def lookup_chunk(
    params: Params,
    state: State,
    prefix: PrefixCache | None = None,
    *,
    cfg: Config,
    steps: int,
    drafted: int,
) -> tuple[State, Checked]:
    """Runs `steps` steps of 1 to `drafted` + 1 greedy tokens per row -> the new state, and the tokens.

    `state` is donated: it cannot be used afterwards.
    """

    def step(state: State, _: None) -> tuple[State, tuple[Array, Array]]:
        guesses = draft(state.ids, state.positions + 1, drafted)
        given = jnp.concatenate([state.tokens[:, None], guesses], axis=1)
        logits, cache = vipllava.extend(params, given, state.cache, state.positions, cfg=cfg, prefix=prefix)
        B, T, V = logits.shape
        tokens = most_likely(logits.reshape(B * T, V)).reshape(B, T)
        counts, ended = count_accepted(tokens, guesses, state.eos)
        counts = jnp.where(state.done, 0, counts)
        newest = jnp.take_along_axis(tokens, jnp.maximum(counts - 1, 0)[:, None], axis=1)[:, 0]
        after = dataclasses.replace(
            state,
            cache=cache,
            ids=write_ids(state.ids, tokens, state.positions + 1),
            tokens=jnp.where(state.done, state.tokens, newest),
            positions=state.positions + counts,
            done=state.done | ended,
        )
        return pin_state(after, mesh), (tokens, counts)

    mesh = mesh_of(params)
    state, stacked = jax.lax.scan(step, state, length=steps)
    checked = Checked(*(jnp.swapaxes(x, 0, 1) for x in stacked))
    return pin_state(state, mesh), jax.tree.map(lambda x: pin(x, row_letters(x), mesh), checked)


def draft(ids: Array, lengths: Array, drafted: int) -> Array:
    """The ids, B x drafted, that follow the place most like the end of each row ids BS of `lengths` B.

    That is the last of the places with the most ids before them equal to the newest, up to LONGEST.
    """
    S = ids.shape[1]
    equal = jnp.where(jnp.arange(S) < lengths[:, None], repeats_of(ids, lengths, LONGEST), -1)
    place = jnp.argmax(equal * S + jnp.arange(S), axis=1)
    slots = jnp.minimum(place[:, None] + jnp.arange(drafted), S - 1)
    return jnp.take_along_axis(ids, slots, axis=1)


def count_accepted(tokens: Array, guesses: Array, eos: Array) -> tuple[Array, Array]:
    """The number of tokens BT that are part of the answer, B, and whether the last of them is an end.

    Token t was chosen after the guesses before it, so it counts if these equal the tokens before it; none
    counts after an end id.
    """
    B, T = tokens.shape
    agrees = jnp.cumprod(guesses == tokens[:, :-1], axis=1).sum(axis=1) + 1
    ends = is_end(tokens.reshape(-1), jnp.repeat(eos, T, axis=0)).reshape(B, T)
    first = jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1) + 1, T + 1)
    return jnp.minimum(agrees, first).astype(jnp.int32), first <= agrees


class RowQueues:
    """Tokens that arrive in different numbers per row, handed out in equal numbers."""

    def __init__(self, B: int) -> None:
        self.rows: list[list[int]] = [[] for _ in range(B)]

    def add(self, checked: Checked) -> None:
        """Appends the tokens of a chunk, on the host."""
        for row, tokens, counts in zip(self.rows, checked.tokens, checked.counts, strict=True):
            valid = np.arange(tokens.shape[1]) < counts[:, None]
            row += tokens[valid].tolist()

    def take(self, active: np.ndarray, pad: int) -> np.ndarray:
        """As many tokens Bxt as every active row has, with padding for the other rows."""
        t = min((len(row) for row, is_active in zip(self.rows, active, strict=True) if is_active), default=0)
        taken = np.full((len(self.rows), t), pad, np.int32)
        for b in np.flatnonzero(active):
            taken[b] = self.rows[b][:t]
            del self.rows[b][:t]
        return taken
