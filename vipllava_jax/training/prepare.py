"""Prepares a run from its settings, cheap steps first: rows are checked before weights are read."""

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vipllava_jax import loading, pods
from vipllava_jax.arrays import nested
from vipllava_jax.config import Config
from vipllava_jax.data.batch_settings import BatchSettings
from vipllava_jax.data.batches import Batches
from vipllava_jax.data.conversations import LengthLimit, check_trainable
from vipllava_jax.data.row_checks import read_rows
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.loading import Source
from vipllava_jax.mesh_text import parse_mesh
from vipllava_jax.messages import printable
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import make_mesh
from vipllava_jax.training import finite, lora, output_folder
from vipllava_jax.training.optimizer import Optimizer
from vipllava_jax.training.parts import in_trained_part, split
from vipllava_jax.training.progress import ProgressListener
from vipllava_jax.training.recipes import LORA
from vipllava_jax.training.settings import MAX_STEPS, TrainingSettings
from vipllava_jax.training.settings_file import check_divisible
from vipllava_jax.training.shardings import process_rows, put_quantized, state_shardings
from vipllava_jax.training.step import StepFunction, TrainState, init_state, make_step
from vipllava_jax.weight_options import WeightOptions


@dataclass(frozen=True)
class TrainingPlan:
    """A prepared run without its weights; values that data or device decide are filled into its settings."""

    settings: TrainingSettings
    initial_weights: Source
    batches: Batches
    held_out: Batches | None
    optimizer: Optimizer
    mesh: Mesh | None  # None: one device
    unsent: list[str]  # problems of the rows of this process, which the first process has yet to show

    @property
    def cfg(self) -> Config:
        return self.initial_weights.cfg

    @property
    def steps(self) -> int:
        return self.optimizer.steps


def prepare_run(settings: TrainingSettings, progress: ProgressListener) -> TrainingPlan:
    """Locates the model and checks the rows of a run; ValueError if something is wrong."""
    check_trainable(settings.template)
    mesh = training_mesh(settings)
    folder = loading.locate(str(settings.model))
    output_folder.check_overwrites_no_input(settings, folder)
    processor = Processor.load(folder)
    initial_weights = loading.open(folder, WeightOptions(quantize=settings.quantize), mesh)
    processor = processor.for_model(initial_weights.cfg)
    stored_quantized = settings.quantize is None and any(
        isinstance(w, Quantized) for _, w in initial_weights.leaf_shapes()
    )
    if settings.merge and stored_quantized:
        raise ValueError(
            f'{folder}: holds quantized weights, into which adapters cannot be merged: leave out --merge, or '
            'use another model'
        )
    settings = dataclasses.replace(
        settings,
        dtype=settings.dtype or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16'),
        workers=min(8, (os.cpu_count() or 2) // 2) if settings.workers is None else settings.workers,
    )
    unsent: list[str] = []
    batches = _read_batches(settings, processor, mesh, progress, unsent)
    settings = dataclasses.replace(settings, steps=_count_steps(settings, batches))
    held_out = (
        _read_batches(settings, processor, mesh, progress, unsent, held_out=True)
        if settings.eval_data
        else None
    )
    return TrainingPlan(settings, initial_weights, batches, held_out, Optimizer(settings), mesh, unsent)


def training_mesh(settings: TrainingSettings) -> Mesh | None:
    """The mesh of a run, None for a single device; ValueError if it does not fit the devices or the batch."""
    text = settings.mesh or ('auto' if pods.process_count() > 1 else None)
    if text is None:
        return None
    given = parse_mesh(text)
    axes = {'fsdp': jax.device_count()} if given == 'auto' else given
    check_divisible(settings, axes)
    mesh = make_mesh(axes)
    return mesh if mesh.size > 1 else None


def _count_steps(settings: TrainingSettings, batches: Batches) -> int:
    """The number of steps of a run, from the setting or from the number of epochs."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None
    steps = max(1, math.ceil(settings.epochs * batches.steps))
    if steps > MAX_STEPS:
        raise ValueError(
            f'epochs {settings.epochs:g} are {steps:.3g} steps: give fewer, for at most {MAX_STEPS:,} steps'
        )
    return steps


def _read_batches(
    settings: TrainingSettings,
    processor: Processor,
    mesh: Mesh | None,
    progress: ProgressListener,
    unsent: list[str],
    held_out: bool = False,
) -> Batches:
    """The batches of the rows for training, or of the held-out rows."""
    files = (str(settings.eval_data),) if held_out else settings.data
    batch_settings = _batch_settings(settings, held_out)
    rows = read_rows(
        files,
        settings.images,
        skip_broken=batch_settings.skip_broken,
        workers=batch_settings.workers,
        progress=progress.rows_checked,
        limit=LengthLimit(processor, batch_settings.template, batch_settings.max_length),
    )
    if rows.without_answer == len(rows):
        raise ValueError(
            f'max_length {settings.max_length} leaves no answer in any of the {len(rows):,} rows of '
            f'{", ".join(files)}: give a larger one'
        )
    for error in rows.errors:
        progress.note(printable(f'skipped: {error}'))
    report = progress.note if pods.is_first() else unsent.append
    return Batches(rows, processor, batch_settings, report, _loaded_rows(settings, held_out, mesh))


def _loaded_rows(settings: TrainingSettings, held_out: bool, mesh: Mesh | None) -> tuple[int, ...] | None:
    """The rows of a batch whose images this process loads: those of its devices; None for all."""
    if pods.process_count() == 1:
        return None
    count = settings.batch // settings.accumulate
    starts = range(0, count if held_out else settings.batch, count)
    return tuple(int(start + row) for start in starts for row in process_rows(count, mesh))


def _batch_settings(settings: TrainingSettings, held_out: bool) -> BatchSettings:
    """How rows become batches; those of held-out rows are as large as a micro-batch."""
    return BatchSettings(
        batch_size=settings.batch // (settings.accumulate if held_out else 1),
        seed=None if held_out else settings.seed,
        template=settings.template,
        fit=settings.fit,  # type: ignore[arg-type]
        max_length=settings.max_length,
        group_by_length=settings.group_by_length,
        skip_broken=settings.skip_broken,
        workers=settings.workers or 0,
    )


def initial_state(
    plan: TrainingPlan, progress: Callable[[int, int, str], None] | None = None
) -> tuple[TrainState, Params]:
    """The state before the first step, and the frozen params in the compute dtype."""
    settings, cfg = plan.settings, plan.cfg

    def cast(path: str, leaf: Any) -> Any:
        if isinstance(leaf, Quantized):
            return leaf if plan.mesh is None else put_quantized(path, leaf, plan.mesh)
        return leaf.astype(settings.param_dtype if in_trained_part(path, settings.trains) else settings.dtype)

    with pods.together():
        params = nested((path, cast(path, leaf)) for path, leaf in plan.initial_weights.leaves(progress))
    with pods.together():
        finite.check_loaded(plan.initial_weights.folder, params)
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
    state = init_state(trainable, plan.optimizer, jnp.dtype(settings.param_dtype), plan.mesh)
    if plan.mesh is None:
        # with the sharding of a step's result, or the second step would be compiled again
        state = jax.device_put(state, jax.tree.leaves(params)[0].sharding)
    return state, frozen


def step_function(plan: TrainingPlan, state: TrainState) -> StepFunction:
    """The compiled step of a run with a state like this one."""
    settings = plan.settings
    has_dropout = LORA in settings.trains and settings.lora_dropout
    return make_step(
        plan.cfg,
        plan.optimizer,
        remat=settings.remat,
        dtype=jnp.dtype(settings.dtype),
        apply_dropout=lora.with_dropout if has_dropout else None,
        normalize=plan.batches.processor.image_settings.normalize,
        shardings=state_shardings(state, plan.mesh) if plan.mesh else None,
    )
