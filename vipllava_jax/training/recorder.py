"""Writes the record of each step, once the device has computed it, to the metrics and the progress."""

import math
from typing import NamedTuple

import jax

from vipllava_jax import pods
from vipllava_jax.arrays import flat
from vipllava_jax.data.batch_maker import TrainingBatch
from vipllava_jax.messages import listed, printable
from vipllava_jax.model.cost import Costs
from vipllava_jax.model.vipllava import Params
from vipllava_jax.training.checkpoints import Checkpoints
from vipllava_jax.training.finite import NotFinite
from vipllava_jax.training.held_out import BestStep
from vipllava_jax.training.metrics_log import MetricsLog
from vipllava_jax.training.parts import adapted_weight
from vipllava_jax.training.prepare import TrainingPlan
from vipllava_jax.training.progress import ProgressListener
from vipllava_jax.training.step import StepMetrics
from vipllava_jax.training.step_timer import StepTimer, TimedStep, throughput

NAMED_ROWS = 4  # the maximum number of rows that a message names


class PendingStep(NamedTuple):
    """A step that the device is computing."""

    step: int
    batch: TrainingBatch
    metrics: StepMetrics
    timed: TimedStep


class StepRecorder:
    """Records the steps of a run: their loss, time and throughput, and the best loss on held-out rows."""

    def __init__(
        self,
        plan: TrainingPlan,
        checkpoints: Checkpoints,
        log: MetricsLog | None,
        best: BestStep,
        progress: ProgressListener,
        trainable: Params,
        peak: float | None,
    ):
        """`log` is None in all processes but the first.

        `peak` is the most operations per second of all devices together, if known.
        """
        self.best = best
        self._plan, self._checkpoints, self._log, self._progress = plan, checkpoints, log, progress
        self._peak = peak
        self._costs = Costs(plan.cfg)
        self._adapter_parameters = sum(leaf.size for path, leaf in flat(trainable) if adapted_weight(path))
        self._timer = StepTimer()

    def start(self, step: int, batch: TrainingBatch, metrics: StepMetrics) -> PendingStep:
        """Starts to measure a step, which has been sent to the device."""
        shapes = batch.examples.tokens.shape, batch.examples.images.shape
        return PendingStep(step, batch, metrics, self._timer.start(metrics, shapes))

    def record(self, pending: PendingStep, eval_loss: float | None = None) -> None:
        """Waits for a step and writes its record; NotFinite if its loss or gradient is not finite."""
        step, batch, _, timed = pending
        seconds = self._timer.seconds(timed)
        metrics = jax.device_get(pending.metrics)  # waits for all values at once
        if not metrics.finite:
            raise self._not_finite(step, batch, metrics)
        lengths = (batch.examples.tokens != self._plan.batches.processor.tokenizer.pad).sum(axis=1).tolist()
        record = {
            'step': step,
            'loss': float(metrics.loss),
            'grad_norm': float(metrics.grad_norm),
            'learning_rate': float(metrics.learning_rate),
            'target_tokens': int(metrics.target_tokens),
            'tokens': sum(lengths),
            'seconds': round(seconds, 4),
        }
        if not timed.compiled:
            trains, images = self._plan.settings.trains, int(batch.examples.image_counts.sum())
            flop = self._costs.training(lengths, images, trains, self._adapter_parameters)
            record |= throughput(seconds, sum(lengths), flop, self._peak)
        if eval_loss is not None:
            record['eval_loss'] = eval_loss
            if not math.isfinite(eval_loss):
                self._progress.note(
                    f'step {step}: the loss on held-out rows is {eval_loss:g}: it cannot be the best step'
                )
            self.best.update(step, eval_loss)
        if self._log:
            self._log.write(record)
        self._progress.step_done(record)

    def _not_finite(self, step: int, batch: TrainingBatch, metrics: StepMetrics) -> NotFinite:
        self._checkpoints.wait()
        last = max(self._checkpoints.steps(), default=None)
        saved = 'there is no checkpoint yet'
        if last is not None:
            saved = f'the last checkpoint is {self._checkpoints.path(last)}'
        return NotFinite(
            f'step {step}: the loss is {float(metrics.loss):g}, the norm of the gradient '
            f'{float(metrics.grad_norm):g}, on the rows {listed(batch.names, NAMED_ROWS)}; {saved}; check '
            'the rows, or lower learning_rate'
        )

    def skip_pause(self) -> None:
        """Excludes the time since the last step from the next one."""
        self._timer.skip_pause()

    def share_notes(self) -> None:
        """Shows, in the first process, the problems of rows that the others have met."""
        unsent = self._plan.unsent
        while any(notes := pods.gather(printable(unsent.pop(0), 300) if unsent else None)):
            for note in filter(None, notes):
                self._progress.note(note)

    def sync(self) -> None:
        """Waits until all records are on the disk."""
        if self._log:
            self._log.sync()

    def close(self) -> None:
        self._timer.close()
