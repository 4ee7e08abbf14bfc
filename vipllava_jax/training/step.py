"""The training step: accumulates gradients over micro-batches and updates the weights."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from vipllava_jax.config import Config
from vipllava_jax.data.examples import Examples
from vipllava_jax.model.vipllava import Params
from vipllava_jax.training.loss import loss
from vipllava_jax.training.optimizer import Optimizer
from vipllava_jax.training.parts import join
from vipllava_jax.training.shardings import state_shardings


@struct.dataclass
class TrainState:
    """The state that a step updates."""

    step: Array  # int32, the number of steps taken
    params: Params  # the trainable weights, in float32 or narrower
    optimizer: Any  # optax's state in float32; the first moment may be narrower


class StepMetrics(NamedTuple):
    """The metrics of a step, computed before its update."""

    loss: Array  # float32, the mean over the target tokens
    grad_norm: Array  # float32, over all trainable weights, before clipping
    target_tokens: Array  # int32, the number of target tokens
    learning_rate: Array  # float32
    finite: Array  # bool: whether loss and gradient are finite; if not, nothing is updated


StepResult = tuple[TrainState, StepMetrics]
StepFunction = Callable[[TrainState, Params, Examples, Array], StepResult]


def init_state(
    trainable: Params, optimizer: Optimizer, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None
) -> TrainState:
    """The state before the first step; `dtype` of the trainable weights is float32 or, smaller, bfloat16.

    Weights that already have that dtype are not copied, and are deleted by the first step, to which the state
    is donated. An update of a bfloat16 weight is often smaller than half its last bit; with stochastic
    rounding, the sum of many updates is right on average. On a mesh, where the weights must be already,
    moments have the shardings of their weights.
    """
    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), trainable)
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), params)

    def init() -> tuple[Array, Any]:
        return jnp.int32(0), optimizer.transform().init(jax.tree.map(lambda w: jnp.zeros(w.shape), shapes))

    at = None
    if mesh is not None:
        step, moments = jax.eval_shape(init)
        shardings = state_shardings(TrainState(step, shapes, moments), mesh)
        at = shardings.step, shardings.optimizer
    step, moments = jax.jit(init, out_shardings=at)()
    return TrainState(step, params, moments)


def make_step(
    cfg: Config,
    optimizer: Optimizer,
    *,
    remat: str = 'layers',
    dtype: DTypeLike = jnp.bfloat16,
    apply_dropout: Callable[[Params, Array], Params] | None = None,
    normalize: Callable[[Array], Array] = lambda images: images,
    shardings: TrainState | None = None,
) -> StepFunction:
    """The compiled step: (state, frozen params, stacked batches, key) -> (next state, metrics).

    Trainable weights are cast to `dtype`, frozen ones are not. `normalize` preprocesses the images of a
    micro-batch for the tower; `apply_dropout` maps the params and a key to params with dropout. The key is
    folded with the step number, so that one key is enough for a run. The state is donated. If the loss or
    gradient is not finite, the state does not change. `shardings` are those of a state on a mesh.
    """
    transform = optimizer.transform()

    divide = partial(_divide, shardings=None if shardings is None else shardings.params)

    def micro_loss(params: Params, frozen: Params, batch: Examples, key: Array) -> tuple[Array, Array]:
        """(the sum of the loss, the number of target tokens)."""
        params = join(params, frozen)
        params = params if apply_dropout is None else apply_dropout(params, key)
        return loss(params, batch._replace(images=normalize(jnp.asarray(batch.images))), cfg, remat)

    def step(state: TrainState, frozen: Params, batches: Examples, key: Array) -> StepResult:
        dropout_key, rounding_key = jax.random.split(jax.random.fold_in(key, state.step))
        # divided again after the cast, so that devices exchange weights in `dtype`
        params = divide(jax.tree.map(lambda w: w.astype(dtype), state.params))
        sums, gradients = _accumulate(micro_loss, divide, params, frozen, batches, dropout_key)
        metrics, gradients = _means(*sums, gradients, optimizer.at(state.step))
        updated = _update(transform, state, gradients, rounding_key)
        return jax.tree.map(lambda new, old: jnp.where(metrics.finite, new, old), updated, state), metrics

    # the next state has the shardings of the last one, or the second step would be compiled again
    results = None if shardings is None else (shardings, shardings.step)
    return jax.jit(step, donate_argnums=0, out_shardings=results)


def _divide(tree: Params, shardings: Any) -> Params:
    """A tree like the trainable weights, with their shardings; None leaves it as it is."""
    return tree if shardings is None else jax.lax.with_sharding_constraint(tree, shardings)


def _means(total: Array, tokens: Array, gradients: Params, rate: Array) -> tuple[StepMetrics, Params]:
    """The sums over the tokens of a step, and its learning rate -> its metrics and the mean gradients."""
    gradients = jax.lax.optimization_barrier(gradients)  # or XLA would keep some in float32 up to here
    count = jnp.maximum(tokens, 1)
    gradients = jax.tree.map(lambda g: g.astype(jnp.float32) / count, gradients)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradients)))
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    return StepMetrics(total / count, norm, tokens, rate, finite), gradients


def _accumulate(
    micro_loss: Callable[..., tuple[Array, Array]],
    divide: Callable[[Params], Params],
    params: Params,
    frozen: Params,
    batches: Examples,
    key: Array,
) -> tuple[tuple[Array, Array], Params]:
    """The sums over the micro-batches: ((loss, number of target tokens), gradient of the loss)."""

    def gradient(micro_batch: Examples, key: Array) -> tuple[tuple[Array, Array], Params]:
        value = jax.value_and_grad(micro_loss, has_aux=True)
        sums, gradients = value(params, frozen, micro_batch, key)
        return sums, divide(gradients)

    A = len(batches.tokens)
    keys = jax.random.split(key, A)
    if A == 1:
        return gradient(*jax.tree.map(lambda x: x[0], (batches, keys)))

    def add(sums: Any, micro_batch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, gradient(*micro_batch)), None

    zeros = ((jnp.float32(0), jnp.int32(0)), divide(jax.tree.map(lambda w: jnp.zeros(w.shape), params)))
    return jax.lax.scan(add, zeros, (batches, keys))[0]


def _update(
    transform: optax.GradientTransformation, state: TrainState, gradients: Params, rounding_key: Array
) -> TrainState:
    """The state after an update by the optimizer, computed in float32."""
    weights = jax.tree.map(lambda w: w.astype(jnp.float32), state.params)
    updates, moments = transform.update(gradients, state.optimizer, weights)
    rounded = round_stochastically(optax.apply_updates(weights, updates), state.params, rounding_key)
    return TrainState(state.step + 1, rounded, moments)


def round_stochastically(new: Params, old: Params, key: Array) -> Params:
    """Casts new weights to the dtypes of the old ones, with stochastic rounding for bfloat16."""
    leaves, tree = jax.tree.flatten(new)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.map(_round_leaf, new, old, jax.tree.unflatten(tree, list(keys)))


def _round_leaf(new: Array, old: Array, key: Array) -> Array:
    if old.dtype != jnp.bfloat16:
        return new.astype(old.dtype)
    # A bfloat16 is the upper half of a float32; the lower half determines the probability of rounding up.
    noise = jax.random.bits(key, new.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(new, jnp.uint32) + noise
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
