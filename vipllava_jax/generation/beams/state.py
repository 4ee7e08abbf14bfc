"""The state of beam search, and the step that accepts candidates, with the arithmetic of transformers.

A row has W running beams, which are unfinished answers, and up to W finished answers, the best so far. Each
step proposes K candidates, which are beams continued by one token: some of them finish, and the best W of the
others become the running beams. T is the maximum number of tokens of an answer.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from vipllava_jax.generation.beams.cache import divergence_after, of_parents, reorder
from vipllava_jax.generation.logits.next_token import NewTokens
from vipllava_jax.generation.logits.repeats import add_id
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.generation.state import State, row_letters, write_ids
from vipllava_jax.sharding import per_device, pin

LOWEST = -1e9  # added to the score of a beam that cannot be chosen, as in transformers
EARLY_STOPPING = {False: 0, True: 1, 'never': 2}
REASONS = ('', 'length', 'stop', 'time')  # why an answer ended; '' if it has not
LENGTH, STOP, TIME = 1, 2, 3


@struct.dataclass
class BeamRules:
    """How the beams of each row are ranked and when its search ends."""

    limits: Any  # B int32, the maximum number of tokens of an answer
    length_penalty: Any  # B float32
    early_stopping: Any  # B int32, a value of EARLY_STOPPING


@struct.dataclass
class Candidates:
    """The K best continuations of the beams of each row, in falling order of their scores."""

    scores: Array  # BK float32, the score of the beam plus that of the token
    beams: Array  # BK int32, the beam that is continued
    new: NewTokens  # BK, with K in the place of T
    stopped: Any  # BK int32, STOP or TIME where the host ends a candidate, otherwise 0


@struct.dataclass
class Finished:
    """The best finished answers of each row, in falling order of their scores."""

    answers: NewTokens  # BWT
    scores: Array  # BW float32, the score of the tokens / length ** length_penalty; LOWEST for none
    lengths: Array  # BW int32
    reasons: Array  # BW int32, an index of REASONS


@struct.dataclass
class Beams:
    """The state of beam search. Every leaf leads with B, except those of `state`, which lead with B·W."""

    state: State  # of the running beams, those of a row one after the other
    rules: BeamRules
    answers: NewTokens  # BWT, of the running beams
    scores: Array  # BW float32, of the running beams: the sum of the scores of their tokens
    divergence: Array  # BWW int32, the first slot in which two running beams may differ
    cache_start: Array  # B int32, the position in slot 0; above 0 if the beams share the keys before it
    counts: Array  # B int32, the number of tokens that the running beams have
    done: Array  # B bool, whether the search has ended; the row then changes no more
    finished: Finished
    candidates: Candidates  # of the next token


def rules_of(settings: GenerationSettings, limits: np.ndarray) -> BeamRules:
    """The rules of B rows; raises ValueError if a setting has another number of rows."""
    B = len(limits)
    early_stopping = np.full(B, EARLY_STOPPING[settings.early_stopping], np.int32)
    penalty = np.float32(settings.per_row('length_penalty', B))
    return BeamRules(np.int32(limits), penalty, early_stopping)


def map_beams(f: Callable[[Any, str], Any], beams: Beams) -> Beams:
    """Applies f to each leaf of the beams and its letters, in which a dot is an axis that no mesh divides."""

    def apply(path: Any, x: Any) -> Any:
        return f(x, 'BSKH' if any(key.name == 'cache' for key in path[:2]) else row_letters(x))

    return jax.tree_util.tree_map_with_path(apply, beams)


def pin_beams(beams: Beams, mesh: Any) -> Beams:
    """The beams with the shardings of their letters (under jit), which both programs expect."""
    return map_beams(partial(pin, mesh=mesh), beams)


def accept(beams: Beams) -> tuple[Beams, Array]:
    """Accepts the candidates -> the beams with one more token, and the indices BW of those that run on.

    Candidates that end join the finished answers if they are among the best.
    """
    candidates, rules, counts = beams.candidates, beams.rules, beams.counts + 1
    B, W = beams.scores.shape
    ends = why_candidates_end(beams)
    scores, chosen = largest(candidates.scores + jnp.where(ends > 0, LOWEST, 0), W)
    parents = jnp.take_along_axis(candidates.beams, chosen, axis=1)
    parents = jnp.where(beams.done[:, None], jnp.arange(W), parents)
    finished = add_finished(beams, ends)
    positions = beams.state.positions.reshape(B, W)[:, 0] + (beams.counts > 0)
    after = {
        'answers': continued(beams, chosen),
        'scores': scores,
        'divergence': divergence_after(beams.divergence, parents, positions - beams.cache_start),
        'counts': counts,
        'done': (ends > 0).all(axis=1) | is_settled(finished, scores, counts, rules),
        'finished': finished,
    }
    before = {name: getattr(beams, name) for name in after}
    after = jax.tree.map(partial(where_rows, beams.done), before, after)
    state = of_chosen(beams, parents, chosen, positions)
    return dataclasses.replace(beams, state=state, **after), chosen


def where_rows(condition: Array, x: Array, y: Array) -> Array:
    """The rows of x where the condition B holds, and those of y elsewhere."""
    return jnp.where(condition.reshape(-1, *[1] * (x.ndim - 1)), x, y)


def why_candidates_end(beams: Beams) -> Array:
    """Why each candidate ends, BK: LENGTH, STOP or TIME; 0 if it does not."""
    tokens, stopped = beams.candidates.new.tokens, beams.candidates.stopped
    eos = beams.state.eos.reshape(*beams.scores.shape, -1)[:, :1]
    is_end = (tokens[:, :, None] == eos).any(axis=-1) | (stopped == STOP)
    at_limit = (beams.counts + 1 >= beams.rules.limits)[:, None]
    return jnp.where(is_end, STOP, jnp.where(at_limit, LENGTH, stopped))


def add_finished(beams: Beams, ends: Array) -> Finished:
    """The best W of the finished answers and of the candidates that end; `ends` BK are their reasons.

    Of the candidates, only the best W can finish.
    """
    candidates, finished = beams.candidates, beams.finished
    W, K = beams.scores.shape[1], ends.shape[1]
    ends = jnp.where(jnp.arange(K) < W, ends, 0)
    lengths = jnp.broadcast_to(beams.counts[:, None] + 1, ends.shape)
    ranked = candidates.scores / lengths.astype(jnp.float32) ** beams.rules.length_penalty[:, None]
    ranked += jnp.where(ends > 0, 0, LOWEST)
    scores, kept = largest(jnp.concatenate([finished.scores, ranked], axis=1), W)

    def merged(old: Array, new: Array) -> Array:
        return jnp.take_along_axis(jnp.concatenate([old, new], axis=1), kept, axis=1)

    is_new = kept >= W
    old = take_beams(finished.answers, jnp.minimum(kept, W - 1))
    new = continued(beams, jnp.maximum(kept - W, 0))
    answers = jax.tree.map(partial(jax.vmap(where_rows), is_new), new, old)
    return Finished(answers, scores, merged(finished.lengths, lengths), merged(finished.reasons, ends))


def is_settled(finished: Finished, scores: Array, counts: Array, rules: BeamRules) -> Array:
    """Whether no running beam of a row, with scores BW, is expected to improve its finished answers, B."""
    full = (finished.reasons > 0).all(axis=1)
    to_limit = (rules.early_stopping == EARLY_STOPPING['never']) & (rules.length_penalty > 0)
    lengths = jnp.where(to_limit, rules.limits, counts).astype(jnp.float32)
    best = scores[:, 0] / lengths**rules.length_penalty
    worst = jnp.where(full, finished.scores.min(axis=1), LOWEST)
    return (full & (rules.early_stopping == EARLY_STOPPING[True])) | ~(best > worst)


def largest(x: Array, k: int) -> tuple[Array, Array]:
    """The k largest values along the last axis, and their indices, found on each device for its own rows.

    XLA does not divide `top_k` over devices by itself.
    """
    letters = row_letters(x)
    top_k: Any = partial(lax.top_k, k=k)
    values, indices = per_device(top_k, f'{letters}->{letters}')(x)
    return values, indices


def take_beams(x: Any, beams: Array) -> Any:
    """Arrays BWn… -> the same with the values of the given beams, BW."""
    return jax.tree.map(lambda leaf: jax.vmap(lambda row, beam: row[beam])(leaf, beams), x)


def continued(beams: Beams, chosen: Array) -> NewTokens:
    """The answers BWT that the chosen candidates BW continue, with their tokens."""
    candidates = beams.candidates
    answers = take_beams(beams.answers, jnp.take_along_axis(candidates.beams, chosen, axis=1))
    new = take_beams(candidates.new, chosen)
    write = jax.vmap(lambda row, token, at: row.at[:, at].set(token, mode='drop'))
    return jax.tree.map(lambda row, token: write(row, token, beams.counts), answers, new)


def of_chosen(beams: Beams, parents: Array, chosen: Array, positions: Array) -> State:
    """The state of the beams that the chosen candidates BW become, with their tokens at `positions` B.

    `parents` BW are the beams that they continue. Rows that are done keep their tokens and positions.
    """
    state, W = beams.state, parents.shape[1]
    done, at = jnp.repeat(beams.done, W), jnp.repeat(positions, W)
    tokens = jnp.take_along_axis(beams.candidates.new.tokens, chosen, axis=1).reshape(-1)
    tokens, at = jnp.where(done, state.tokens, tokens), jnp.where(done, state.positions, at)
    cache = reorder(state.cache, beams.divergence, parents, positions - beams.cache_start)
    ids, repeats = state.ids, state.repeats
    if state.processing is not None:  # nothing else reads the ids
        ids = write_ids(of_parents(ids, parents), tokens[:, None], at)
        assert repeats is not None
        repeats = add_id(of_parents(repeats, parents), ids, tokens)
    return dataclasses.replace(
        state, cache=cache, tokens=tokens, positions=at, ids=ids, repeats=repeats, done=done
    )
