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
from vipllava_jax.training.parts import adapted_weight
from vipllava_jax.training.settings import TrainingSettings


@dataclass(frozen=True)
class Optimizer:
    """The optimizer of a run and its learning rate schedule, with the settings of the run."""

    settings: TrainingSettings

    @property
    def steps(self) -> int:
        """The number of steps of the run, over which the schedule extends."""
        assert self.settings.steps is not None, 'the number of steps follows from the epochs and the data'
        return self.settings.steps

    def at(self, step: ArrayLike) -> Array:
        """The learning rate of a step, counted from 0: a linear warm-up from 0, then a cosine decay to 0.

        With the schedule 'constant' it stays at its peak after the warm-up. Like transformers'
        get_cosine_schedule_with_warmup, the first step has rate 0 if there is a warm-up.
        """
        return self.settings.learning_rate * self._fraction(step)

    def _fraction(self, step: ArrayLike) -> Array:
        """The learning rate of a step as a fraction of the peak."""
        warmup = math.ceil(self.settings.warmup * self.steps)
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup) / max(1, self.steps - warmup), 0, 1)
        after = 0.5 * (1 + jnp.cos(jnp.pi * done)) if self.settings.schedule == 'cosine' else 1.0
        return jnp.where(step < warmup, step / max(1, warmup), after)

    def transform(self) -> optax.GradientTransformation:
        """The optax transformation for a tree of trainable weights."""
        settings = self.settings
        usual = settings.learning_rate
        projector = usual if settings.projector_rate is None else settings.projector_rate

        def rates(params: Params) -> Params:
            return map_paths(lambda path: projector if path[0] == 'projector' else usual, params)

        def scale(updates: Params, state: optax.EmptyState, params: Params | None = None) -> Any:
            return jax.tree.map(lambda update, rate: update * rate, updates, rates(updates)), state

        return optax.chain(
            optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
            TRANSFORMS[settings.optimizer](settings),
            optax.GradientTransformation(lambda params: optax.EmptyState(), scale),
            optax.scale_by_schedule(self._fraction),
        )


TRANSFORMS: dict[str, Callable[[TrainingSettings], optax.GradientTransformation]] = {  # with learning rate 1
    'adamw': lambda s: optax.adamw(
        1.0, b2=s.beta2, mu_dtype=s.moment_dtype, weight_decay=s.weight_decay, mask=decays
    ),
    'lion': lambda s: optax.lion(1.0, mu_dtype=s.moment_dtype, weight_decay=s.weight_decay, mask=decays),
    'sgd': lambda s: optax.chain(
        optax.add_decayed_weights(s.weight_decay, decays),
        optax.sgd(1.0, momentum=0.9, accumulator_dtype=s.moment_dtype),
    ),
    'adafactor': lambda s: optax.adafactor(
        1.0, weight_decay_rate=s.weight_decay or None, weight_decay_mask=decays
    ),
}


def decays(params: Params) -> Params:
    """True for weights with weight decay: all but norms and biases."""

    def decay(path: tuple[str, ...]) -> bool:
        leaf = '/'.join(path)
        return weight_axes(adapted_weight(leaf) or leaf).decays

    return map_paths(decay, params)


def map_paths(f: Callable[[tuple[str, ...]], Any], params: Params) -> Params:
    """Params -> the tree of f(path) for the path of each leaf, such as ('llama', 'norm', 'w')."""
    return jax.tree_util.tree_map_with_path(lambda keys, _: f(tuple(key.key for key in keys)), params)
