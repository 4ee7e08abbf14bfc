"""`train`: runs or resumes the training of a model in its output folder, and exports the result."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipllava_jax import ceilings, pods
from vipllava_jax.training import export, output_folder, prepare, run_record
from vipllava_jax.training.checkpoints import (
    Checkpoints,
    check_run_unlocked,
    lock_run,
    open_checkpoints,
)
from vipllava_jax.training.description import describe_run
from vipllava_jax.training.held_out import BestStep, HeldOutEvaluator
from vipllava_jax.training.loop import TrainingLoop
from vipllava_jax.training.metrics_log import MetricsLog
from vipllava_jax.training.prepare import TrainingPlan
from vipllava_jax.training.progress import ProgressListener
from vipllava_jax.training.recorder import StepRecorder
from vipllava_jax.training.settings import KEYS
from vipllava_jax.training.settings_file import read_settings


class Trained(NamedTuple):
    """The result of a run."""

    folder: Path  # the folder of the model or of the adapter
    step: int  # the step whose weights were exported


def train(
    file: str | os.PathLike[str] | None = None, *, progress: ProgressListener | None = None, **keys: Any
) -> Trained:
    """Trains a model with the settings of a TOML file, or keyword arguments of the same names.

    A run that was interrupted is resumed from its last checkpoint when `train` is called again with the same
    output. On SIGINT and SIGTERM it saves and raises Stopped. Raises ValueError for invalid settings, rows or
    weights, and NotFinite, with the step and its rows, for a loss that is NaN or infinite.
    """
    settings = read_settings(file, **keys)
    folder, target = Path(settings.output), output_folder.result_folder(settings)
    with pods.together():
        output_folder.check_writable_folder(folder)
        if target.exists() and run_record.exported_step(folder, target) is None:
            raise ValueError(f'{target} exists, and was not written by this run: give another output')
        if pods.is_first():
            check_run_unlocked(folder)
    with progress if progress and pods.is_first() else ProgressListener() as listener:
        with pods.together():
            plan = prepare.prepare_run(settings, listener)  # before anything is written
        _check_same_run(plan)
        with contextlib.ExitStack() as stack:
            with pods.together():
                if pods.is_first():
                    stack.enter_context(lock_run(folder))
            checkpoints = stack.enter_context(open_checkpoints(folder / 'checkpoints', settings.keep))
            return _train_in_folder(plan, checkpoints, listener)


def _check_same_run(plan: TrainingPlan) -> None:
    """Raises ValueError, in all processes of a run, if their settings or rows differ."""
    settings = {name: getattr(plan.settings, name) for name in KEYS if KEYS[name].affects_results}
    rows, mesh = plan.batches.rows, plan.mesh.shape if plan.mesh else None
    text = repr((settings, mesh, len(rows), int(rows.size.sum()))).encode()
    digest = hashlib.blake2b(text, digest_size=16).hexdigest()
    first = pods.from_first(digest)
    with pods.together():
        if digest != first:
            raise ValueError('the settings or rows differ from those of process 0: give all the same command')


def _train_in_folder(plan: TrainingPlan, checkpoints: Checkpoints, progress: ProgressListener) -> Trained:
    """Trains, unless the run's folder already has the result."""
    folder, target = Path(plan.settings.output), output_folder.result_folder(plan.settings)
    with contextlib.ExitStack() as stack:
        log, best, done = _open_log(plan, checkpoints, stack)
        step = _step_to_export(plan, best)
        with pods.together():
            is_due = done < plan.steps or run_record.exported_step(folder, target) != step
            if is_due and pods.is_first():
                export.check_replaceable(target)
                run_record.record_export(folder, target, 0)
        if pods.from_first(is_due):
            step = _train_and_export(plan, checkpoints, log, best, progress, done)
            if pods.is_first():
                run_record.record_export(folder, target, step)
        progress.note(f'{target}: {plan.settings.model}, trained to step {step}')
        return Trained(target, step)


def _open_log(
    plan: TrainingPlan, checkpoints: Checkpoints, stack: contextlib.ExitStack
) -> tuple[MetricsLog | None, BestStep, int]:
    """The log of metrics, None except in the first process; the best step; the number of steps done."""
    folder, log, best, done = Path(plan.settings.output), None, BestStep([], []), 0
    with pods.together():
        if pods.is_first():
            done = max(checkpoints.steps(), default=0)
            run_record.record_run(folder, plan.settings, resumes=done > 0)
            log = stack.enter_context(contextlib.closing(MetricsLog(folder, done)))
            if done > plan.steps:
                raise ValueError(f'{folder} already has {done} steps: set steps to at least {done}')
            best = BestStep(log.records, checkpoints.steps())
    done, best.step, best.loss = pods.from_first([done, best.step, best.loss])
    with pods.together():
        if not (folder / run_record.FILE).exists():
            raise ValueError(f'output {folder}: not the folder of process 0: give one that all share')
    checkpoints.best = best.step
    return log, best, done


def _step_to_export(plan: TrainingPlan, best: BestStep) -> int:
    return best.step if plan.settings.export == 'best' and best.step else plan.steps


def _train_and_export(
    plan: TrainingPlan,
    checkpoints: Checkpoints,
    log: MetricsLog | None,
    best: BestStep,
    progress: ProgressListener,
    done: int,
) -> int:
    """Takes the steps after the first `done` and exports the result; returns the step of its weights."""
    settings, dtype = plan.settings, jnp.dtype(plan.settings.dtype)
    devices = plan.mesh.size if plan.mesh else 1
    peak = None if jax.default_backend() == 'cpu' else devices * ceilings.matmul(dtype)
    state, frozen = prepare.initial_state(plan, progress.weights_loaded)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    if done:
        del state
        state = checkpoints.restore(done, shapes)
    progress.run_started(describe_run(plan, state.params, frozen, done), done, plan.steps, settings.log_every)
    with contextlib.ExitStack() as stack:
        recorder = StepRecorder(plan, checkpoints, log, best, progress, state.params, peak)
        stack.enter_context(contextlib.closing(recorder))
        evaluator = None
        if plan.held_out:
            evaluator = HeldOutEvaluator(plan.held_out, plan.cfg, dtype, plan.mesh)
            stack.enter_context(contextlib.closing(evaluator))
        state = TrainingLoop(plan, state, frozen, checkpoints, recorder, evaluator).run(done)
    checkpoints.wait()
    step = _step_to_export(plan, best)
    if step != plan.steps:
        del state
        state = checkpoints.restore(step, shapes)
    export.export_result(plan, state.params, frozen)
    return step
