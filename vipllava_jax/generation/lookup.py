"""Speculative decoding by prompt lookup: guesses the next tokens from the row itself, then checks them.

Answers about marks often quote the question: 'What is within the red rectangle?' - 'The object within the
red rectangle is …'. Each step finds an earlier occurrence of the row's newest ids in prompt and answer, takes
the ids that follow it as a draft, and runs the model over the whole draft, which takes little longer than one
token. The tokens are those of greedy decoding: a draft is accepted as far as it agrees with the model's most
likely tokens, and the token after that is the model's own.

Checking a draft is speculative decoding (Leviathan et al., 2023); prompt lookup is from Saxena (2023).
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
from vipllava_jax.generation.state import State, pin_rows, pin_state, write_ids
from vipllava_jax.model import vipllava
from vipllava_jax.model.llama import PrefixCache
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of

LONGEST_MATCH = 3  # at most this many of the newest ids are searched for


class Checked(NamedTuple):
    """The tokens of several steps, of which the first `counts` of each step are accepted."""

    tokens: Array  # B x steps x T int32, where T is 1 + the length of a draft
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
    return pin_state(state, mesh), pin_rows(checked, mesh)


def draft(ids: Array, lengths: Array, drafted: int) -> Array:
    """The drafts, B x `drafted`, for rows of ids BS, of which the first `lengths` B count.

    A draft follows the longest match of the newest ids, of up to LONGEST_MATCH ids, and of several matches of
    this length the last.
    """
    S = ids.shape[1]
    matched = jnp.where(jnp.arange(S) < lengths[:, None], repeats_of(ids, lengths, LONGEST_MATCH), -1)
    first = jnp.argmax(matched * S + jnp.arange(S), axis=1)
    slots = jnp.minimum(first[:, None] + jnp.arange(drafted), S - 1)
    return jnp.take_along_axis(ids, slots, axis=1)


def count_accepted(tokens: Array, guesses: Array, eos: Array) -> tuple[Array, Array]:
    """The number B of tokens BT that are accepted, and whether the last of them is an end id, B.

    The model selected token t after the guesses before it, so t is accepted if these guesses equal the tokens
    before it; no token after an end id is accepted.
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
        """As many tokens, B x t, as every active row has, with padding for the other rows."""
        t = min((len(row) for row, is_active in zip(self.rows, active, strict=True) if is_active), default=0)
        taken = np.full((len(self.rows), t), pad, np.int32)
        for b in np.flatnonzero(active):
            taken[b] = self.rows[b][:t]
            del self.rows[b][:t]
        return taken
