"""The optimizer, its learning rate schedule, and a separate learning rate for the projector."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from vipllava_jax.model.params import weight_axes
from vipllava_jax.model.vipllava import Params
from vipllava_jax.training.recipes import OPTIMIZERS, SCHEDULES


@dataclass(frozen=True)
class Optimizer:
    """An optimizer and its learning rate schedule over `steps` steps; defaults are those of the recipes.

    Raises ValueError for an unknown name or schedule, or a number out of range.
    """

    rate: float  # the peak learning rate
    steps: int  # the number of steps of the run
    name: str = 'adamw'
    projector_rate: float | None = None  # the peak for the projector; None: the same as `rate`
    schedule: str = 'cosine'
    warmup: float = 0.03  # the fraction of the steps in which the rate rises to its peak
    weight_decay: float = 0.0  # not applied to norms and biases
    clip: float | None = None  # the largest global norm of the gradient
    beta2: float = 0.999  # AdamW's decay rate of the second moment
    moment_dtype: str = 'float32'  # the dtype of the first moment; 'bfloat16' halves its memory

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f'optimizer {self.name!r} is not one of {", ".join(OPTIMIZERS)}')
        if self.schedule not in SCHEDULES:
            raise ValueError(f'schedule {self.schedule!r} is not one of {", ".join(SCHEDULES)}')
        if self.steps < 1 or not 0 <= self.warmup <= 1:
            raise ValueError(f'steps {self.steps}, warmup {self.warmup}: must be 1 or more, and 0 to 1')
        if not 0 < self.beta2 < 1:
            raise ValueError(f'beta2 {self.beta2}: must be between 0 and 1')
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f'clip {self.clip}: must be more than 0, or None for no clipping')

    def at(self, step: ArrayLike) -> Array:
        """The learning rate of a step, counted from 0: a linear warm-up from 0, then a cosine decay to 0.

        With the schedule 'constant' it stays at its peak after the warm-up. Like transformers'
        get_cosine_schedule_with_warmup, the first step has rate 0 if there is a warm-up.
        """
        return self.rate * self._fraction(step)

    def _fraction(self, step: ArrayLike) -> Array:
        """The learning rate of a step as a fraction of the peak."""
        warmup = math.ceil(self.warmup * self.steps)
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup) / max(1, self.steps - warmup), 0, 1)
        after = 0.5 * (1 + jnp.cos(jnp.pi * done)) if self.schedule == 'cosine' else 1.0
        return jnp.where(step < warmup, step / max(1, warmup), after)

    def transform(self) -> optax.GradientTransformation:
        """The optax transformation for a tree of trainable weights."""

        def rates(params: Params) -> Params:
            projector = self.rate if self.projector_rate is None else self.projector_rate
            return map_paths(lambda path: projector if path[0] == 'projector' else self.rate, params)

        def scale(updates: Params, state: optax.EmptyState, params: Params | None = None) -> Any:
            return jax.tree.map(lambda update, rate: update * rate, updates, rates(updates)), state

        return optax.chain(
            optax.identity() if self.clip is None else optax.clip_by_global_norm(self.clip),
            TRANSFORMS[self.name](self),
            optax.GradientTransformation(lambda params: optax.EmptyState(), scale),
            optax.scale_by_schedule(self._fraction),
        )


TRANSFORMS: dict[str, Callable[[Optimizer], optax.GradientTransformation]] = {  # with learning rate 1
    'adamw': lambda o: optax.adamw(
        1.0, b2=o.beta2, mu_dtype=o.moment_dtype, weight_decay=o.weight_decay, mask=decays
    ),
    'lion': lambda o: optax.lion(1.0, mu_dtype=o.moment_dtype, weight_decay=o.weight_decay, mask=decays),
    'sgd': lambda o: optax.chain(
        optax.add_decayed_weights(o.weight_decay, decays),
        optax.sgd(1.0, momentum=0.9, accumulator_dtype=o.moment_dtype),
    ),
    'adafactor': lambda o: optax.adafactor(
        1.0, weight_decay_rate=o.weight_decay or None, weight_decay_mask=decays
    ),
}


def decays(params: Params) -> Params:
    """True for weights with weight decay: all but norms and biases."""

    def decay(path: tuple[str, ...]) -> bool:
        weight = path[:-1] if path[-2] == 'w' else path  # without the a or b of an adapter
        return weight_axes('/'.join(weight)).decays

    return map_paths(decay, params)


def map_paths(f: Callable[[tuple[str, ...]], Any], params: Params) -> Params:
    """Params -> the tree of f(path) for the path of each leaf, such as ('llama', 'norm', 'w')."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: f(tuple(key.key for key in keys)), params)
