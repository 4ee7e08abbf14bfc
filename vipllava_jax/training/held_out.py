"""Evaluation on held-out rows, and the step with the lowest loss on them."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from vipllava_jax import pods
from vipllava_jax.config import Config
from vipllava_jax.data.batches import Batches
from vipllava_jax.data.examples import Examples
from vipllava_jax.inputs.pixels import ImageSettings
from vipllava_jax.model.vipllava import Params
from vipllava_jax.training.loss import loss
from vipllava_jax.training.parts import join
from vipllava_jax.training.shardings import put_batch


class BestStep:
    """The step, among those with a checkpoint, that has the lowest loss on the held-out rows."""

    def __init__(self, records: Iterable[Mapping[str, Any]], saved: Collection[int]):
        """`records` are those of the steps so far, and `saved` the steps with a checkpoint."""
        losses = {record['step']: record['eval_loss'] for record in records if 'eval_loss' in record}
        saved_losses = {step: losses[step] for step in saved if math.isfinite(losses.get(step, math.nan))}
        self.step: int | None = min(saved_losses, key=lambda step: saved_losses[step], default=None)
        self.loss: float = math.inf if self.step is None else saved_losses[self.step]

    def update(self, step: int, loss: float) -> None:
        """Makes a step the best one if its loss is lower; a loss of NaN never is."""
        if loss < self.loss:
            self.step, self.loss = step, loss


class HeldOutEvaluator:
    """Computes the loss on all held-out rows, as often as needed; the worker processes start only once."""

    def __init__(self, batches: Batches, cfg: Config, dtype: DTypeLike, mesh: Mesh | None = None):
        self._cfg, self._dtype, self._mesh = cfg, dtype, mesh
        self._images = batches.processor.image_settings
        self._steps = batches.steps
        self._batches = batches.iterate()  # one epoch per evaluation; the next one is prepared ahead

    def loss(self, params: Params, frozen: Params, is_stopped: Callable[[], object]) -> float | None:
        """The mean loss over the target tokens, computed in `dtype`; None once `is_stopped` returns true."""
        total, count = 0.0, 0
        for _ in range(self._steps):
            with pods.together():
                batch = next(self._batches)
            if is_stopped():
                return None
            rows = put_batch(batch.examples, self._mesh)
            part, tokens = _loss(params, frozen, rows, self._images, self._cfg, self._dtype)
            total, count = total + float(part), count + int(tokens)
        return total / max(count, 1)

    def close(self) -> None:
        self._batches.close()


@partial(jax.jit, static_argnums=(3, 4, 5))
def _loss(
    params: Params, frozen: Params, batch: Examples, images: ImageSettings, cfg: Config, dtype: DTypeLike
) -> tuple[Array, Array]:
    batch = batch._replace(images=images.normalize(batch.images))
    params = jax.tree.map(lambda w: w.astype(dtype), params)
    return loss(join(params, frozen), batch, cfg, 'layers')
