"""The training loop: steps, metrics, checkpoints, and resuming."""

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vipllava_jax import ceilings
from vipllava_jax.arrays import flat
from vipllava_jax.data.batches import Batch
from vipllava_jax.data.rows import BrokenRow
from vipllava_jax.generation.finite import describe_not_finite
from vipllava_jax.messages import listed
from vipllava_jax.model.cost import Costs
from vipllava_jax.model.vipllava import Params
from vipllava_jax.signals import catch_signals
from vipllava_jax.training import config, export, identity, output_folder, prepare
from vipllava_jax.training.checkpoints import Checkpoints, check_unlocked, locked, opened
from vipllava_jax.training.evaluation import held_out
from vipllava_jax.training.finite import NotFinite
from vipllava_jax.training.loss import Examples
from vipllava_jax.training.metrics import Metrics
from vipllava_jax.training.pace import Pace, Watched, rates
from vipllava_jax.training.parts import join
from vipllava_jax.training.prepare import Plan
from vipllava_jax.training.progress import Silent
from vipllava_jax.training.step import State

NAMED = 4  # rows that a message names


class Trained(NamedTuple):
    """The result of a run."""

    folder: Path  # of the model, or of the adapter
    step: int  # the step whose weights it has


class Stopped(Exception):
    """A run that was stopped by a signal and can be resumed."""

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal


def train(
    file: str | os.PathLike[str] | None = None, *, progress: Silent | None = None, **keys: Any
) -> Trained:
    """Trains a model with the settings of a TOML file, or keyword arguments of the same names.

    A run that was interrupted is resumed from its last checkpoint when `train` is called again with the same
    output. On SIGINT and SIGTERM it saves and raises Stopped. Raises ValueError for invalid settings, rows or
    weights, and NotFinite, with the step and its rows, for a loss that is NaN or infinite.
    """
    settings = config.settings(file, **keys)
    folder, target = Path(settings.output), output_folder.result(settings)
    output_folder.check_folder(folder)
    if target.exists() and identity.made(folder, target) is None:
        raise ValueError(f'{target} is there already, and not of this run: give another output')
    check_unlocked(folder)
    with progress or Silent() as shown:
        plan = prepare.plan(settings, shown)  # before anything is written
        with locked(folder), opened(folder / 'checkpoints', settings.keep) as saved:
            return _trained(plan, saved, shown)


def _trained(plan: Plan, saved: Checkpoints, progress: Silent) -> Trained:
    """Trains, unless the run's folder already has the result."""
    folder, target = Path(plan.settings.output), output_folder.result(plan.settings)
    done = max(saved.steps(), default=0)
    identity.confirm(folder, plan.settings, begun=done > 0)
    with contextlib.closing(Metrics(folder, done)) as metrics:
        if done > plan.steps:
            raise ValueError(f'{folder} has {done} steps behind it already: give more than {plan.steps}')
        run = Run(plan, saved, metrics, progress)
        if done < plan.steps or identity.made(folder, target) != run.chosen:
            export.check_replaced(target)
            identity.note(folder, target, 0)
            run.go(done)
            identity.note(folder, target, run.chosen)
        progress.note(f'{target}: {plan.settings.model}, trained to step {run.chosen}')
        return Trained(target, run.chosen)


class Running(NamedTuple):
    """A step that the device is computing, with its batch and its metrics."""

    step: int
    batch: Batch
    numbers: Any
    watched: Watched


class Run:
    """A run with its folder open; `best` is the step with the lowest loss on held-out rows."""

    def __init__(self, plan: Plan, saved: Checkpoints, metrics: Metrics, progress: Silent):
        self.plan, self.saved, self.metrics, self.progress = plan, saved, metrics, progress
        looks = {r['step']: r['eval_loss'] for r in metrics.records if 'eval_loss' in r}
        there = [step for step in saved.steps() if math.isfinite(looks.get(step, math.nan))]
        self.best = min(there, key=lambda step: looks[step], default=None)
        self.lowest = looks.get(self.best, float('inf'))
        saved.best = self.best

    @property
    def chosen(self) -> int:
        """The step whose weights are exported."""
        return self.best if self.plan.settings.export == 'best' and self.best else self.plan.steps

    def go(self, done: int) -> None:
        """Trains the remaining steps and exports the result."""
        plan, progress = self.plan, self.progress
        self.peak = (
            None if jax.default_backend() == 'cpu' else ceilings.matmul(jnp.dtype(plan.settings.dtype))
        )
        state, frozen = prepare.weights(plan, progress.loading)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        if done:
            del state
            state = self.saved.restore(done, shapes)
        self.adapters = _adapters(state.params)
        progress.begin(
            prepare.about(plan, state.params, frozen, done), done, plan.steps, plan.settings.log_every
        )
        state = self._steps(state, frozen, done)
        self.saved.wait()
        if self.chosen != plan.steps:
            del state
            state = self.saved.restore(self.chosen, shapes)
        export.write(plan, state.params, frozen)

    def _steps(self, state: State, frozen: Params, done: int) -> State:
        plan, settings = self.plan, self.plan.settings
        take, key = prepare.step(plan), jax.random.key(settings.seed)
        self.pace = Pace()
        made = plan.batches.iterate(done, plan.steps)
        # One epoch per evaluation, from one iterator, whose processes start once and prepare the next.
        looked_at: contextlib.AbstractContextManager[Iterator[Batch]] = contextlib.nullcontext(iter(()))
        if plan.held_out:
            looked_at = contextlib.closing(plan.held_out.iterate())
        # the step that the device computes while the host gets the next batch
        before: Running | None = None
        with (
            contextlib.closing(made),
            looked_at as held,
            contextlib.closing(self.pace),
            catch_signals() as caught,
        ):
            try:
                for step, batch in enumerate(made, done + 1):
                    state, numbers = take(state, frozen, _parts(batch, settings.accumulate), key)
                    watched = self.pace.watch(numbers, (batch.tokens.shape, batch.images.shape))
                    if before:
                        self._tell(*before)
                    before = Running(step, batch, numbers, watched)
                    looks = plan.held_out and (step % settings.eval_every == 0 or step == plan.steps)
                    loss = self._look(state, frozen, held, caught) if looks else None
                    number = caught()
                    saves = step % settings.save_every == 0 or step == plan.steps or number
                    if looks or saves:
                        self._tell(*before, loss)
                        before = None
                        if saves or self.best == step:
                            self._save(step, state)
                        self.pace.resume()
                    if number:
                        self.saved.wait()
                        place = self.saved.place(step)
                        raise Stopped(
                            number, f'stopped after step {step}, saved as {place}; the same command goes on'
                        )
            except BrokenRow:  # of a later step: save the steps before it
                if before:
                    self._tell(*before)
                    self._save(before[0], state)
                    self.saved.wait()
                raise
            except NotFinite as error:
                if odd := describe_not_finite(join(state.params, frozen)):
                    raise NotFinite(f'{error}; {odd}') from None
                raise
        return state

    def _save(self, step: int, state: State) -> None:
        self.metrics.sync()
        self.saved.save(step, state, self.best)

    def _look(
        self, state: State, frozen: Params, held: Iterator[Batch], stop: Callable[[], int]
    ) -> float | None:
        """The loss on the held-out rows; None if a signal arrives meanwhile."""
        batches = self.plan.held_out
        assert batches
        epoch, dtype = itertools.islice(held, batches.steps), jnp.dtype(self.plan.settings.dtype)
        images = batches.processor.image_settings
        return held_out(state.params, frozen, epoch, images, self.plan.cfg, dtype, stop)

    def _tell(
        self, step: int, batch: Batch, numbers: Any, watched: Watched, eval_loss: float | None = None
    ) -> None:
        """Waits for a step, and writes its record to the metrics and the progress."""
        seconds = self.pace.seconds(watched)
        numbers = jax.device_get(numbers)  # all at once
        loss, norm = float(numbers.loss), float(numbers.grad_norm)
        if not numbers.finite:
            self.saved.wait()
            last = max(self.saved.steps(), default=None)
            kept = (
                f'the last checkpoint is {self.saved.place(last)}' if last else 'there is no checkpoint yet'
            )
            raise NotFinite(
                f'step {step}: the loss is {loss:g}, the norm of its gradient {norm:g}, on the rows '
                f'{listed(batch.ids, NAMED)}; {kept}; look at the rows, or lower learning_rate'
            )
        lengths = (batch.tokens != self.plan.batches.processor.tokenizer.pad).sum(axis=1).tolist()
        record = {
            'step': step,
            'loss': loss,
            'grad_norm': norm,
            'rate': float(numbers.rate),
            'learnt_tokens': int(numbers.tokens),
            'tokens': sum(lengths),
            'seconds': round(seconds, 4),
        }
        if not watched.compiled:
            trains, images = self.plan.settings.trains, int(batch.image_counts.sum())
            flop = Costs(self.plan.cfg).training(lengths, images, trains, self.adapters)
            record |= rates(seconds, sum(lengths), flop, self.peak)
        if eval_loss is not None:
            record['eval_loss'] = eval_loss
            if not math.isfinite(eval_loss):
                self.progress.note(
                    f'step {step}: the loss on held-out rows is {eval_loss:g}, and never the best'
                )
            if eval_loss < self.lowest:
                self.best, self.lowest = step, eval_loss
        self.metrics.write(record)
        self.progress.step(record)


def _parts(batch: Batch, count: int) -> Examples:
    """A batch split into parts along a new leading axis."""
    # Not -1, which NumPy cannot infer for an array of no images.
    return Examples(*(x.reshape(count, len(x) // count, *x.shape[1:]) for x in batch[:4]))


def _adapters(trained: Params) -> int:
    """The number of parameters in LoRA pairs."""
    return sum(leaf.size for path, leaf in flat(trained) if path.endswith(('/w/a', '/w/b')))
