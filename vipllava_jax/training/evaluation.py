"""The loss on held-out rows."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
from jax import Array
from jax.typing import DTypeLike

from vipllava_jax.config import Config
from vipllava_jax.data.batches import Batch
from vipllava_jax.inputs.pixels import ImageSettings
from vipllava_jax.model.vipllava import Params
from vipllava_jax.training.loss import Examples, loss
from vipllava_jax.training.parts import join


def held_out(
    params: Params,
    frozen: Params,
    batches: Iterable[Batch],
    images: ImageSettings,
    cfg: Config,
    dtype: DTypeLike,
    stopped: Callable[[], object] = lambda: None,
) -> float | None:
    """The mean loss over the batches' target tokens, computed in `dtype`; None if it was stopped."""
    total, count = 0.0, 0
    for batch in batches:
        if stopped():
            return None
        part, tokens = _loss(params, frozen, Examples(*batch[:4]), images, cfg, dtype)
        total, count = total + float(part), count + int(tokens)
    return total / max(count, 1)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _loss(
    params: Params, frozen: Params, batch: Any, settings: ImageSettings, cfg: Config, dtype: DTypeLike
) -> tuple[Array, Array]:
    batch = batch._replace(images=settings.normalize(batch.images))
    narrow = jax.tree.map(lambda w: w.astype(dtype), params)
    return loss(join(narrow, frozen), batch, cfg, 'layers')
