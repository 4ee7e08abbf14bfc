"""Prepares a run from its settings, cheap steps first: rows are checked before weights are read."""

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vipllava_jax import loading
from vipllava_jax.arrays import flat, nested
from vipllava_jax.config import Config
from vipllava_jax.data import rows
from vipllava_jax.data.batches import Batches
from vipllava_jax.data.conversations import Limit, check
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.loading import Source, WeightOptions
from vipllava_jax.messages import printable
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.model.vipllava import Params
from vipllava_jax.training import finite, lora, output_folder
from vipllava_jax.training.config import STEPS, Settings
from vipllava_jax.training.optimizer import Optimizer
from vipllava_jax.training.parts import split, wholly
from vipllava_jax.training.progress import Silent
from vipllava_jax.training.recipes import LORA
from vipllava_jax.training.step import State, Step, make_step, start


@dataclass(frozen=True)
class Plan:
    """A prepared run without its weights; values that data or device decide are filled into its settings."""

    settings: Settings
    source: Path  # the folder of the initial model
    initial: Source  # the weights of that model
    batches: Batches
    held_out: Batches | None
    optimizer: Optimizer

    @property
    def cfg(self) -> Config:
        return self.initial.cfg

    @property
    def steps(self) -> int:
        return self.optimizer.steps


def plan(settings: Settings, progress: Silent) -> Plan:
    """Locates the model and checks the rows of a run; ValueError if something is wrong."""
    check(settings.template)
    source = loading.locate(str(settings.model))
    output_folder.check_apart(settings, source)
    processor = Processor.load(source)
    initial = loading.open(source, WeightOptions(quantize=settings.quantize))
    processor = processor.for_model(initial.cfg)
    settings = dataclasses.replace(
        settings,
        dtype=settings.dtype or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16'),
        workers=min(8, (os.cpu_count() or 2) // 2) if settings.workers is None else settings.workers,
    )
    stored_quantized = settings.quantize is None and any(
        isinstance(w, Quantized) for _, w in initial.leaf_shapes()
    )
    if settings.merge and stored_quantized:
        raise ValueError(
            f'{source}: quantised, so that no adapter can be merged: leave out --merge, or use another model'
        )
    batches = _batches(settings, processor, settings.data, progress)
    if settings.steps is None:
        assert settings.epochs is not None
        steps = max(1, math.ceil(settings.epochs * batches.steps))
        if steps > STEPS:
            raise ValueError(
                f'epochs is {settings.epochs:g}, which are {steps:.3g} steps: give at most {STEPS:,} steps'
            )
        settings = dataclasses.replace(settings, steps=steps)
    assert settings.steps
    held_out = None
    if settings.eval_data:
        held_out = _batches(settings, processor, (settings.eval_data,), progress, held_out=True)
    optimizer = Optimizer(
        rate=settings.learning_rate,
        steps=settings.steps,
        name=settings.optimizer,
        projector_rate=settings.projector_rate,
        schedule=settings.schedule,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        clip=settings.clip or None,
        beta2=settings.beta2,
        moment_dtype=settings.moment_dtype,
    )
    return Plan(settings, source, initial, batches, held_out, optimizer)


def _batches(
    settings: Settings, processor: Processor, files: tuple[str, ...], progress: Silent, held_out: bool = False
) -> Batches:
    """The batches of some files' rows, for training or for evaluation on held-out rows."""
    workers = settings.workers or 0
    found = rows.read(
        files,
        settings.images,
        skip_broken=settings.skip_broken,
        workers=workers,
        progress=progress.checking,
        limit=Limit(processor, settings.template, settings.max_length),
    )
    if found.unlearnt == len(found):
        raise ValueError(
            f'max_length {settings.max_length} leaves no answer in any of the {len(found):,} rows of '
            f'{", ".join(files)}: give a larger one'
        )
    for line in found.broken:
        progress.note(printable(f'left out: {line}'))
    return Batches(
        found,
        processor,
        batch_size=settings.batch // (settings.accumulate if held_out else 1),
        seed=None if held_out else settings.seed,
        workers=workers,
        template=settings.template,
        fit=settings.fit,  # type: ignore[arg-type]
        max_length=settings.max_length,
        group_by_length=settings.group_by_length,
        skip_broken=settings.skip_broken,
        report=progress.note,
    )


def weights(plan: Plan, progress: Callable[[int, int, str], None] | None = None) -> tuple[State, Params]:
    """The state before the first step, and the frozen params in the compute dtype."""
    settings, cfg = plan.settings, plan.cfg

    def cast(path: str, leaf: Any) -> Any:
        if isinstance(leaf, Quantized):
            return leaf
        return leaf.astype(settings.param_dtype if wholly(path, settings.trains) else settings.dtype)

    params = nested((path, cast(path, leaf)) for path, leaf in plan.initial.leaves(progress))
    finite.check_loaded(plan.source, params)
    if LORA in settings.trains:
        params = lora.add(
            params,
            cfg,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            key=jax.random.key(settings.seed),
            targets=settings.lora_targets,
            dropout=settings.lora_dropout,
        )
    trainable, frozen = split(params, settings.trains)
    state = start(trainable, plan.optimizer, jnp.dtype(settings.param_dtype))
    # with the sharding of a step's result, or the second step would be compiled again
    return jax.device_put(state, jax.tree.leaves(params)[0].sharding), frozen


def step(plan: Plan) -> Step:
    """The compiled step."""
    settings = plan.settings
    drops = LORA in settings.trains and settings.lora_dropout
    return make_step(
        plan.cfg,
        plan.optimizer,
        remat=settings.remat,
        dtype=jnp.dtype(settings.dtype),
        vary=lora.dropping if drops else None,
        normalize=plan.batches.processor.image_settings.normalize,
    )


def about(plan: Plan, trained: Params, frozen: Params, done: int) -> dict[str, str]:
    """A description of a run, shown when it starts."""
    settings, batches = plan.settings, plan.batches
    moved, fixed = (sum(w.size for _, w in flat(tree)) for tree in (trained, frozen))
    parts = f' in {settings.accumulate} parts' if settings.accumulate > 1 else ''
    left_out = f', {batches.rows.left_out:,} broken left out' if batches.rows.left_out else ', none broken'
    lines = {
        'model': f'{settings.model}, {moved + fixed:,} parameters',
        'trains': f'{" and ".join(settings.trains)}: {moved:,} parameters',
        'data': f'{len(batches.rows):,} rows{left_out}{_cut(batches)}',
        'batches': f'{batches.batch_size} rows a step{parts}, {batches.steps:,} an epoch',
        'steps': f'{plan.steps:,}' + (f', of which {done:,} are done' if done else ''),
        'computes': f'in {settings.dtype}, on {jax.local_devices()[0].device_kind}',
        'output': str(settings.output),
    }
    if plan.held_out:
        rows = f'{len(plan.held_out.rows):,} rows{_cut(plan.held_out)}'
        lines['held out'] = f'{rows}, every {settings.eval_every:,} steps'
    return lines


def _cut(batches: Batches) -> str:
    """How many rows are cut, for the description; '' if none."""
    rows = batches.rows
    if not rows.cut:
        return ''
    passed = f', {rows.unlearnt:,} with no answer left and passed over' if rows.unlearnt else ''
    return f', {rows.cut:,} cut at max_length {batches.max_length:,}{passed}'
