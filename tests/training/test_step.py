"""A training step: which weights it updates, and that splitting its batch makes no difference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rows import examples, ragged, stack
from tests.training.optimizers import optimizer
from vipllava_jax.arrays import flat
from vipllava_jax.data.conversations import IGNORE
from vipllava_jax.data.examples import Examples
from vipllava_jax.training.parts import split
from vipllava_jax.training.step import init_state, make_step, round_stochastically

TRAINS = {'projector', 'llama'}
FAST = optimizer(1e-2, 10, warmup=0)
KEY = jax.random.key(7)


@pytest.fixture
def batches(cfg, rng):
    return [examples(ragged(cfg, rng, rows), cfg) for rows in ([(9, 2), (15, 1)], [(6, 0), (8, 1)])]


@pytest.fixture(scope='module')
def step(cfg):
    return make_step(cfg, FAST, dtype=jnp.float32)


@pytest.fixture
def halves(params):
    return split(params, TRAINS)


def start(trainable, optimizer=FAST, dtype=jnp.float32):
    """The state before the first step, of copies, because other tests share the weights."""
    return init_state(jax.tree.map(jnp.copy, trainable), optimizer, dtype)


def numbers(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_the_loss_falls(step, halves, batches):
    trainable, frozen = halves
    state, losses = start(trainable), []
    for _ in range(10):
        state, metrics = step(state, frozen, stack(batches[:1]), KEY)
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0] / 3
    assert state.step == 10


def test_only_trainable_weights_change(step, params, halves, batches):
    trainable, frozen = halves
    before = jax.tree.map(np.array, params)  # copies
    state, metrics = step(start(trainable), frozen, stack(batches[:1]), KEY)
    jax.tree.map(np.testing.assert_array_equal, frozen, split(before, TRAINS)[1])
    assert set(state.params) == {'projector', 'llama'}
    still = [path for path, w in flat(state.params) if np.array_equal(w, dict(flat(before))[path])]
    assert not still
    assert (metrics.learning_rate, metrics.finite) == (FAST.at(0), True)
    assert metrics.target_tokens == (batches[0].targets != IGNORE).sum()


@pytest.mark.slow
def test_accumulated_micro_batches_equal_one_large_batch(step, halves, batches):
    trainable, frozen = halves
    separate = stack(batches)
    together = Examples(*(np.concatenate(part)[None] for part in separate))
    a, metrics_a = step(start(trainable), frozen, separate, KEY)
    b, metrics_b = step(start(trainable), frozen, together, KEY)
    np.testing.assert_allclose(metrics_a, metrics_b, rtol=1e-5)
    for x, y in zip(numbers(a), numbers(b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


def test_a_batch_without_targets_has_no_loss(step, halves, batches):
    trainable, frozen = halves
    nothing = batches[0]._replace(targets=np.full_like(batches[0].targets, IGNORE))
    state, metrics = step(start(trainable), frozen, stack([nothing]), KEY)
    assert (metrics.loss, metrics.grad_norm, metrics.target_tokens, metrics.finite) == (0, 0, 0, True)
    assert all(np.isfinite(x).all() for x in numbers(state))


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_loss_that_is_not_finite_changes_nothing(step, halves, batches, bad):
    trainable, frozen = halves
    broken = batches[0]._replace(images=np.full_like(batches[0].images, bad))
    state = start(trainable)
    before = [x.copy() for x in numbers(state)]
    state, metrics = step(state, frozen, stack([broken]), KEY)
    assert not metrics.finite
    for x, y in zip(numbers(state), before, strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_state_and_the_initial_weights_are_donated(step, halves, batches):
    trainable = jax.tree.map(jnp.copy, halves[0])
    state = init_state(trainable, FAST)
    step(state, halves[1], stack(batches[:1]), KEY)
    assert all(x.is_deleted() for x in jax.tree.leaves((state, trainable)))


@pytest.mark.slow
def test_dropout_differs_between_steps_and_micro_batches(cfg, halves, batches):
    trainable, frozen = halves

    def noise_for_dropout(params, key):
        noise = 0.5 * jax.random.normal(key)
        return {**params, 'projector': jax.tree.map(lambda w: w * (1 + noise), params['projector'])}

    still = optimizer(0.0, 10)
    step = make_step(cfg, still, dtype=jnp.float32, apply_dropout=noise_for_dropout)

    def losses(batches):
        state, losses = start(trainable, still), []
        for _ in range(2):
            state, metrics = step(state, frozen, stack(batches), KEY)
            losses.append(float(metrics.loss))
        return losses

    one = losses(batches[:1])
    assert one == losses(batches[:1])  # the same key, the same run
    assert abs(one[0] - one[1]) > 1e-4
    twice = losses([batches[0], batches[0]])
    assert abs(twice[0] - one[0]) > 1e-4


@pytest.mark.slow
def test_bfloat16_training_is_close_to_float32(cfg, params, halves, batches):
    """With bfloat16 weights, moments and computation, dtypes are kept, and the loss falls as with float32."""
    o = optimizer(1e-3, 20, warmup=0, moment_dtype='bfloat16')
    losses = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        step = make_step(cfg, o, dtype=dtype)
        trainable, frozen = halves
        state, losses[dtype] = start(trainable, o, dtype), []
        frozen = jax.tree.map(lambda w, dtype=dtype: w.astype(dtype), frozen)
        dtypes = [x.dtype for x in jax.tree.leaves(state)]
        for _ in range(20):
            state, metrics = step(state, frozen, stack(batches), KEY)
            losses[dtype].append(float(metrics.loss))
        assert [x.dtype for x in jax.tree.leaves(state)] == dtypes
    full, half = losses[jnp.float32], losses[jnp.bfloat16]
    assert full[-1] < full[0] / 2
    np.testing.assert_allclose(half, full, rtol=0.05)


def test_stochastic_rounding_is_right_on_average():
    old = {'w': jnp.full(20_000, 1.0, jnp.bfloat16), 'x': jnp.full(20_000, -3.0, jnp.float32)}
    new = {'w': jnp.full(20_000, 1 + 1e-3), 'x': jnp.full(20_000, -3 + 1e-5)}
    once = round_stochastically(new, old, KEY)
    assert {k: w.dtype for k, w in once.items()} == {k: w.dtype for k, w in old.items()}
    assert set(np.unique(once['w'].astype(np.float32))) == {1, 1 + 2**-7}  # the two neighbours
    np.testing.assert_allclose(once['w'].astype(np.float32).mean(), 1 + 1e-3, atol=1e-4)
    np.testing.assert_array_equal(once['x'], new['x'])
    same = round_stochastically(jax.tree.map(lambda w: w.astype(jnp.float32), old), old, KEY)
    jax.tree.map(np.testing.assert_array_equal, same, old)
