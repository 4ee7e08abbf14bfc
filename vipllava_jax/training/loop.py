"""The training loop: takes the steps of a run, with evaluations and checkpoints in between."""

import contextlib
from pathlib import Path

import jax

from vipllava_jax import pods
from vipllava_jax.data.batch_maker import TrainingBatch
from vipllava_jax.data.examples import Examples
from vipllava_jax.data.rows import BrokenRow
from vipllava_jax.generation.finite import describe_not_finite
from vipllava_jax.model.vipllava import Params
from vipllava_jax.pods import PodError
from vipllava_jax.training.checkpoints import Checkpoints
from vipllava_jax.training.finite import NotFinite
from vipllava_jax.training.held_out import HeldOutEvaluator
from vipllava_jax.training.parts import join
from vipllava_jax.training.prepare import TrainingPlan, step_function
from vipllava_jax.training.recorder import PendingStep, StepRecorder
from vipllava_jax.training.shardings import put_batch
from vipllava_jax.training.step import TrainState
from vipllava_jax.training.stops import Stops, catch_stops


class Stopped(Exception):
    """A run that was stopped by a signal and can be resumed."""

    def __init__(self, signal: int, step: int, checkpoint: Path):
        super().__init__(
            f'stopped after step {step}, saved as {checkpoint}; the same command resumes the run'
        )
        self.signal = signal


class TrainingLoop:
    """The state of a run, and the step that the device is computing while the host gets the next batch."""

    def __init__(
        self,
        plan: TrainingPlan,
        state: TrainState,
        frozen: Params,
        checkpoints: Checkpoints,
        recorder: StepRecorder,
        evaluator: HeldOutEvaluator | None,
    ):
        self._plan, self._state, self._frozen = plan, state, frozen
        self._checkpoints, self._recorder, self._evaluator = checkpoints, recorder, evaluator
        self._step_function = step_function(plan, state)
        self._key = jax.random.key(plan.settings.seed)
        self._pending: PendingStep | None = None

    def run(self, done: int) -> TrainState:
        """Takes the steps after the first `done`; returns the last state.

        Raises Stopped on a signal, BrokenRow for a row of a later step, in both cases after the last step is
        saved, and NotFinite.
        """
        plan = self._plan
        with (
            contextlib.closing(plan.batches.iterate(done, plan.steps)) as batches,
            catch_stops(plan.mesh) as stops,
        ):
            try:
                for step, batch in enumerate(stops.batches(batches), done + 1):
                    self._take_step(step, batch)
                    self._evaluate_and_save(step, stops)
            except (BrokenRow, PodError):
                if self._pending:
                    self._recorder.record(self._pending)
                    self._save(self._pending.step)
                    self._checkpoints.wait()
                raise
            except NotFinite as error:
                with pods.together():
                    if problem := describe_not_finite(join(self._state.params, self._frozen)):
                        raise NotFinite(f'{error}; {problem}') from None
                    raise
        return self._state

    def _take_step(self, step: int, batch: TrainingBatch) -> None:
        """Sends a step to the device, and records the one before."""
        plan = self._plan
        micro_batches = put_batch(split_batch(batch.examples, plan.settings.accumulate), plan.mesh)
        self._state, metrics = self._step_function(self._state, self._frozen, micro_batches, self._key)
        started = self._recorder.start(step, batch, metrics)
        if self._pending:
            self._recorder.record(self._pending)
        self._pending = started

    def _evaluate_and_save(self, step: int, stops: Stops) -> None:
        """Evaluates and saves after a step for which this is due; raises Stopped if a signal has arrived."""
        settings, is_last = self._plan.settings, step == self._plan.steps
        evaluates = self._evaluator is not None and (step % settings.eval_every == 0 or is_last)
        eval_loss = None
        if self._evaluator and evaluates:
            eval_loss = self._evaluator.loss(self._state.params, self._frozen, stops.signal_now)
        signal = stops.signal()
        saves = step % settings.save_every == 0 or is_last or signal
        if evaluates or saves:
            assert self._pending
            self._recorder.record(self._pending, eval_loss)
            self._pending = None
            if saves or self._recorder.best.step == step:
                self._save(step)
            self._recorder.skip_pause()
        if signal:
            self._checkpoints.wait()
            raise Stopped(signal, step, self._checkpoints.path(step))

    def _save(self, step: int) -> None:
        self._recorder.sync()
        self._recorder.share_notes()
        self._checkpoints.save(step, self._state, self._recorder.best.step)


def split_batch(batch: Examples, count: int) -> Examples:
    """Splits a batch into micro-batches along a new leading axis."""
    # Not -1, which NumPy cannot infer for an array of no images.
    return Examples(*(x.reshape(count, len(x) // count, *x.shape[1:]) for x in batch))
