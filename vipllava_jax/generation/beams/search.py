"""Beam search on the host: runs the programs chunk by chunk, ends candidates, and returns the answers."""

import copy
import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from vipllava_jax.generation.beams.programs import Progress, beam_chunk, prefill_beams
from vipllava_jax.generation.beams.state import REASONS, STOP, TIME, Beams, map_beams, rules_of
from vipllava_jax.generation.finite import explain
from vipllava_jax.generation.plan import GenerationPlan
from vipllava_jax.generation.prefix import map_prefix
from vipllava_jax.generation.result import Generation
from vipllava_jax.generation.rows import clock, place_rows, to_host
from vipllava_jax.generation.stopping import RowStops
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of, placed_shape, sharding
from vipllava_jax.threads import background
from vipllava_jax.weight_sharding import put

CHUNK = 8  # steps per call; the next call starts before the host reads whether the search has ended


def search(params: Params, plan: GenerationPlan, processor: Processor | None) -> Generation:
    """The best answers to a batch of B prompts, num_return_sequences n for each, the best first."""
    n = plan.settings.num_return_sequences
    limits, max_time = plan.ends.limits[::n], plan.ends.max_time[::n]
    seconds = clock(max_time, mesh_of(params))
    arguments, shapes = program_arguments(params, plan)
    beams, prompts, progress, usable = prefill_beams(
        params, *arguments, plan.prefix_arrays, **shapes, **plan.static
    )
    prefix = plan.decoding_prefix(prompts)
    texts = CandidateTexts(plan, processor) if processor and plan.settings.stop else None
    steps = steps_of(plan)
    for call in range(-(-int(limits.max()) // steps)):
        stopped = np.zeros(beams.candidates.beams.shape, np.int32)
        stopped[: len(limits)][seconds() >= max_time] = TIME
        if texts:
            texts.push(progress, stopped)
        beams = with_ends(beams, stopped, params)
        beams, newest = beam_chunk(params, beams, prefix, steps=steps, **plan.static)
        if call == 0 and not to_host(usable)[: len(limits)].all():
            raise ValueError(explain(params, plan.batch))
        if to_host(progress.done)[: len(limits)].all():
            break
        progress = newest
    return answers_of(beams, plan)


def steps_of(plan: GenerationPlan) -> int:
    """The steps per call: with stop strings one, because the host reads the text of every candidate."""
    return 1 if plan.settings.stop else CHUNK


def program_arguments(params: Params, plan: GenerationPlan) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The array arguments of `prefill_beams`, and its static ones that `beam_chunk` does not take."""
    settings = plan.settings
    limits = plan.ends.limits[:: settings.num_return_sequences]
    # As many as in transformers: if the best candidates of every beam end, enough others remain.
    per_beam = max(2, 1 + len(plan.ends.eos))
    shapes = {
        'slots': plan.slots,
        'share_keys': plan.share_keys,
        'width': settings.num_beams,
        'candidates_per_beam': per_beam,
    }
    return place_rows((*plan.rows, rules_of(settings, limits)), mesh_of(params)), shapes


def with_ends(beams: Beams, stopped: np.ndarray, params: Params) -> Beams:
    """The beams with the candidates that the host ends: `stopped` BK is STOP or TIME, or 0 for others."""
    placed = put(stopped, sharding('B.', stopped.shape, mesh_of(params)))
    return dataclasses.replace(beams, candidates=dataclasses.replace(beams.candidates, stopped=placed))


def answers_of(beams: Beams, plan: GenerationPlan) -> Generation:
    """The n best finished answers of each row of the batch."""
    n, ends = plan.settings.num_return_sequences, plan.ends
    B = len(ends.limits) // n
    finished = jax.tree.map(lambda x: to_host(x)[:B, :n].reshape(B * n, *x.shape[2:]), beams.finished)
    ends.lengths[:] = finished.lengths
    ends.reasons = [REASONS[reason] or 'length' for reason in finished.reasons]
    generation = Generation.of([finished.answers], ends, plan.settings)
    return dataclasses.replace(generation, sequence_scores=finished.scores)


class CandidateTexts:
    """The texts of the candidates of each row, which are searched for stop strings."""

    def __init__(self, plan: GenerationPlan, processor: Processor) -> None:
        settings = plan.settings
        B = len(plan.ends.limits) // settings.num_return_sequences
        # At first every beam is empty, and stands for the candidate that it continues.
        self.candidates = [[RowStops(processor, settings.stop)] * settings.num_beams for _ in range(B)]

    def push(self, progress: Progress, stopped: np.ndarray) -> None:
        """Writes STOP into `stopped` BK where a new candidate completes a stop string."""
        done, chosen, beams, tokens = (to_host(x) for x in dataclasses.astuple(progress))
        for row, before in enumerate(self.candidates):
            if done[row]:
                continue
            running = [before[k] for k in chosen[row]]
            self.candidates[row] = [copy.copy(running[beam]) for beam in beams[row]]
            for k, (text, token) in enumerate(zip(self.candidates[row], tokens[row], strict=True)):
                if text.push([token]) is not None:
                    stopped[row, k] = STOP


def compile_beams(params: Params, plan: GenerationPlan) -> None:
    """Compiles the two programs that `search` runs, in parallel; the params may be shapes."""
    mesh = mesh_of(params)
    arguments, shapes = program_arguments(params, plan)
    traced = prefill_beams.trace(params, *arguments, plan.prefix_arrays, **shapes, **plan.static)

    placed = partial(placed_shape, mesh=mesh)
    beams = map_beams(placed, traced.out_info[0])
    prefix = plan.decoding_prefix(map_prefix(placed, traced.out_info[1]))
    wait = background(traced.lower().compile)
    beam_chunk.lower(params, beams, prefix, steps=steps_of(plan), **plan.static).compile()
    wait()
