"""The two compiled programs of beam search: the prefill with the first candidates, and a chunk of steps.

A step accepts the candidates of the step before, decodes one token for each beam and proposes new candidates,
so that the host can end candidates between chunks.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from vipllava_jax.config import Config
from vipllava_jax.generation.beams.cache import divergence_at_start
from vipllava_jax.generation.beams.state import (
    LOWEST,
    BeamRules,
    Beams,
    Candidates,
    Finished,
    accept,
    largest,
    pin_beams,
    take_beams,
)
from vipllava_jax.generation.logits.next_token import NewTokens
from vipllava_jax.generation.logits.processing import Processing, Processor
from vipllava_jax.generation.logits.sampling import Sampling
from vipllava_jax.generation.prefix import PrefixArrays, pin_prefix
from vipllava_jax.generation.programs import is_usable, next_scores, prefilled
from vipllava_jax.generation.state import State, pin_rows
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.model import vipllava
from vipllava_jax.model.llama import PrefixCache
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of, pin


@struct.dataclass
class Progress:
    """What the host reads of the last step of a chunk; copies, because the beams are donated."""

    done: Array  # B bool
    chosen: Array  # BW int32, the candidates before it that became the running beams
    beams: Array  # BK int32, the beam that each new candidate continues
    tokens: Array  # BK int32, its token


@partial(
    jax.jit,
    static_argnames=('cfg', 'slots', 'width', 'candidates_per_beam', 'share_keys', 'top', 'processors'),
)
def prefill_beams(
    params: Params,
    batch: Batch,
    sampling: Sampling | None,
    eos: Array,
    processing: Processing | None,
    rules: BeamRules,
    prefix: PrefixArrays | None = None,
    *,
    cfg: Config,
    slots: int,
    width: int,
    candidates_per_beam: int,
    share_keys: bool = False,
    top: int | None = None,
    processors: Sequence[Processor] = (),
) -> tuple[Beams, PrefixCache | None, Progress, Array]:
    """Prefills a cache -> `width` beams per row with their first candidates, progress, usable B.

    The second result are the prompts that beams share, None if they do not. Each step proposes
    `candidates_per_beam` times as many candidates as a row has beams. A row is usable if its logits are
    finite, or its processors make them so. The other arguments are those of `prefill_batch`.
    """
    sizes: dict[str, Any] = {'slots': slots, 'copies': width, 'share_keys': share_keys}
    state, logits, prompts = prefilled(params, batch, sampling, eos, processing, prefix, cfg=cfg, **sizes)
    B, T = batch.tokens.shape
    positions = state.positions[::width]
    cache_start = jnp.zeros_like(positions)
    if share_keys:
        cache_start = prefix.cache.of_rows(B) if prefix else positions
    mesh = mesh_of(params)
    # The beams of a row are equal at first, so only one of them is continued.
    scores = jnp.full((B, width), LOWEST, jnp.float32).at[:, 0].set(0)
    K = min(candidates_per_beam * width, width * logits.shape[-1])
    candidates = propose(logits, state, scores, state.positions, K, top, processors)
    answers = empty_answers(candidates.new, width, slots - T, cfg.pad)
    none = jnp.zeros((B, width), jnp.int32)
    beams = Beams(
        state,
        jax.tree.map(jnp.asarray, rules),
        answers,
        scores,
        divergence_at_start(positions - cache_start, width),
        cache_start,
        counts=jnp.zeros(B, jnp.int32),
        done=jnp.zeros(B, bool),
        finished=Finished(answers, jnp.full((B, width), LOWEST, jnp.float32), none, none),
        candidates=candidates,
    )
    usable = is_usable(logits, state.processing)[::width]
    beams = pin_beams(beams, mesh)
    return beams, pin_prefix(prompts, mesh), progress_of(beams, none), pin(usable, 'B', mesh)


def empty_answers(new: NewTokens, W: int, T: int, pad: int) -> NewTokens:
    """Answers BWT of padding, with the same reports as the candidates `new`, all 0."""
    answers = jax.tree.map(lambda x: jnp.zeros((len(x), W, T, *x.shape[2:]), x.dtype), new)
    return dataclasses.replace(answers, tokens=answers.tokens + pad)


@partial(jax.jit, static_argnames=('cfg', 'steps', 'top', 'processors'), donate_argnames='beams')
def beam_chunk(
    params: Params,
    beams: Beams,
    prefix: PrefixCache | None = None,
    *,
    cfg: Config,
    steps: int,
    top: int | None = None,
    processors: Sequence[Processor] = (),
) -> tuple[Beams, Progress]:
    """`steps` steps of beam search -> the beams and their progress; `beams` are donated."""
    mesh = mesh_of(params)

    def step(carry: tuple[Beams, Array], _: None) -> tuple[tuple[Beams, Array], None]:
        beams, chosen = accept(carry[0])
        state, K = beams.state, beams.candidates.beams.shape[1]
        logits, cache = vipllava.decode(
            params, state.tokens, state.cache, state.positions, cfg=cfg, prefix=prefix
        )
        state = dataclasses.replace(state, cache=cache)
        candidates = propose(logits, state, beams.scores, state.positions + 1, K, top, processors)
        beams = dataclasses.replace(beams, state=state, candidates=candidates)
        return (pin_beams(beams, mesh), chosen), None

    none = jnp.zeros(beams.scores.shape, jnp.int32)
    (beams, chosen), _ = lax.scan(step, (beams, none), length=steps)
    return pin_beams(beams, mesh), progress_of(beams, chosen)


def progress_of(beams: Beams, chosen: Array) -> Progress:
    """The progress after a step whose running beams are the candidates `chosen` BW of the step before."""
    candidates = beams.candidates
    progress = Progress(beams.done, chosen, candidates.beams, candidates.new.tokens)
    return pin_rows(progress, mesh_of(beams))


def propose(
    logits: Array,
    state: State,
    scores: Array,
    lengths: Array,
    K: int,
    top: int | None,
    processors: Sequence[Processor],
) -> Candidates:
    """Logits (B·W)V and the scores BW of the beams -> the K candidates of each row, the best or sampled ones.

    `lengths` B·W are the numbers of ids so far. `top` likeliest tokens are reported with each candidate.
    """
    B, W = scores.shape
    logits = pin(logits, 'B.', mesh_of(logits))  # whole rows, because their best tokens are compared
    log_p = jax.nn.log_softmax(logits, axis=-1)
    of_tokens = next_scores(log_p, state, lengths, processors, keep=K // W)
    totals = of_tokens.reshape(B, W, -1) + scores[:, :, None]
    beams, tokens = best(perturbed(totals, state.sampling, lengths), K)
    # Each row is indexed by itself: a common index would gather the rows from all devices.
    at = jax.vmap(lambda x, beam, token: x[beam, token])
    chosen = at(totals, beams, tokens)
    if state.sampling is not None:
        chosen, beams, tokens = lax.sort((-chosen, beams, tokens), num_keys=1)
        chosen = -chosen
    new = NewTokens(tokens)
    if top is not None:
        log_p, of_tokens = log_p.reshape(totals.shape), of_tokens.reshape(totals.shape)
        new = NewTokens(tokens, at(log_p, beams, tokens), at(of_tokens, beams, tokens))
        if top:
            values, ids = largest(log_p, min(top, log_p.shape[-1]))
            likeliest = {'top_ids': take_beams(ids, beams), 'top_logprobs': take_beams(values, beams)}
            new = dataclasses.replace(new, **likeliest)
    return Candidates(chosen, beams, new, stopped=jnp.zeros_like(beams))


def perturbed(totals: Array, sampling: Sampling | None, lengths: Array) -> Array:
    """Scores BWV with noise, so that the largest K are K samples without replacement from their softmax.

    This is the Gumbel top-k trick (Kool et al., 2019). Rows of temperature 0 have no noise.
    """
    if sampling is None:
        return totals
    _, W, V = totals.shape
    keys = jax.vmap(jax.random.fold_in)(sampling.keys[::W], lengths[::W])
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (W, V)))(keys)
    return totals + jnp.where(sampling.temperature[::W, None, None] > 0, noise, 0)


def best(totals: Array, K: int) -> tuple[Array, Array]:
    """Scores BWV -> the beams BK and tokens BK of the K largest, in falling order.

    The K largest of each beam are found first: of all W·V at once would be a sort on a GPU.
    """
    values, ids = largest(totals, min(K, totals.shape[-1]))
    at = largest(values.reshape(len(values), -1), K)[1]
    tokens = jnp.take_along_axis(ids.reshape(len(ids), -1), at, axis=1)
    return at // ids.shape[-1], tokens
