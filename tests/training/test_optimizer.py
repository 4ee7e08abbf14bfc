"""The learning rate schedule, weight decay, and the size of updates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.optimizers import optimizer
from vipllava_jax.training.optimizer import TRANSFORMS, Optimizer, decays

PARAMS = {
    'projector': {
        'norm': {'w': jnp.ones(4), 'b': jnp.ones(4)},
        'linear_1': {'w': jnp.ones((4, 4)), 'b': jnp.ones(4)},
    },
    'llama': {
        'layers_0': {'q': {'w': {'a': jnp.ones((4, 2)), 'b': jnp.ones((2, 4))}}},
        'norm': {'w': jnp.ones(4)},
        'embed': {'w': jnp.ones((4, 4))},
    },
}


def change_of_params(o: Optimizer, steps: int = 2, gradient: float = 0.5):
    """The change of PARAMS after some steps."""
    transform, params = o.transform(), PARAMS
    state = transform.init(params)
    for _ in range(steps):
        gradients = jax.tree.map(lambda w: jnp.full(w.shape, gradient), params)
        updates, state = transform.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return jax.tree.map(jnp.subtract, params, PARAMS)


def test_the_learning_rate_warms_up_decays_and_stays_at_zero():
    o = optimizer(2.0, 100, warmup=0.1)
    assert [float(o.at(i)) for i in (0, 5, 10)] == [0, 1, 2]
    np.testing.assert_allclose(o.at(55), 1, rtol=1e-5)
    np.testing.assert_allclose(o.at(70), 1 + math.cos(math.pi * 60 / 90), rtol=1e-5)
    np.testing.assert_allclose([o.at(100), o.at(150)], 0, atol=1e-6)


def test_the_warm_up_is_rounded_up_to_a_step():
    assert [float(optimizer(1.0, 10).at(i)) for i in (0, 1)] == [0, 1]
    assert float(optimizer(1.0, 10, warmup=0).at(0)) == 1


def test_the_constant_schedule_stays_at_the_peak():
    o = optimizer(2.0, 10, schedule='constant', warmup=0.2)
    assert [float(o.at(i)) for i in (0, 1, 2, 9)] == [0, 1, 2, 2]


def test_all_weights_but_norms_and_biases_decay():
    decay = decays(PARAMS)
    assert decay['projector'] == {'norm': {'w': False, 'b': False}, 'linear_1': {'w': True, 'b': False}}
    assert decay['llama'] == {
        'layers_0': {'q': {'w': {'a': True, 'b': True}}},
        'norm': {'w': False},
        'embed': {'w': True},
    }


@pytest.mark.slow
@pytest.mark.parametrize('name', TRANSFORMS)
def test_the_projector_can_have_another_learning_rate(name):
    usual, slower = (
        change_of_params(optimizer(1e-2, 10, optimizer=name, warmup=0, projector_rate=rate), steps=1)
        for rate in (None, 1e-3)
    )
    np.testing.assert_allclose(
        slower['projector']['linear_1']['w'], usual['projector']['linear_1']['w'] * 0.1, rtol=1e-3
    )
    jax.tree.map(np.testing.assert_array_equal, slower['llama'], usual['llama'])
    assert all((w < 0).all() for w in jax.tree.leaves(usual))  # downhill


@pytest.mark.parametrize('name', TRANSFORMS)
def test_weights_with_decay_shrink_without_a_gradient(name):
    shrunk = change_of_params(optimizer(1e-2, 10, optimizer=name, warmup=0, weight_decay=0.1), gradient=0.0)
    assert (shrunk['llama']['embed']['w'] < 0).all()
    assert (shrunk['llama']['norm']['w'] == 0).all()


def test_clipping_uses_the_norm_of_all_weights_together():
    size = sum(w.size for w in jax.tree.leaves(PARAMS))
    o = optimizer(1.0, 10, optimizer='sgd', warmup=0, schedule='constant', clip_norm=2.0)
    np.testing.assert_allclose(
        -change_of_params(o, steps=1, gradient=3.0)['llama']['norm']['w'], 2 / math.sqrt(size), rtol=1e-5
    )


@pytest.mark.parametrize(('name', 'rest'), [('adamw', 'nu'), ('lion', None), ('sgd', None)])
def test_the_first_moment_can_be_bfloat16(name, rest):
    state = optimizer(1.0, 10, optimizer=name, moment_dtype='bfloat16').transform().init(PARAMS)
    dtypes = {w.dtype.name for w in jax.tree.leaves(state) if w.ndim}
    assert dtypes == ({'bfloat16', 'float32'} if rest else {'bfloat16'})


def test_beta2_is_the_decay_rate_of_the_second_moment():
    def second(beta2):
        transform = optimizer(1.0, 10, warmup=0, schedule='constant', beta2=beta2).transform()
        params = {'llama': {'norm': {'w': jnp.ones(1)}}}
        state = transform.init(params)
        for gradient in (10.0, 1.0):
            gradients = jax.tree.map(lambda w, g=gradient: jnp.full_like(w, g), params)
            updates, state = transform.update(gradients, state, params)
        return float(jax.tree.leaves(updates)[0][0])

    mean = (0.9 * 0.1 * 10 + 0.1 * 1) / (1 - 0.9**2)
    for beta2 in (0.5, 0.999):
        squares = (beta2 * (1 - beta2) * 100 + (1 - beta2) * 1) / (1 - beta2**2)
        assert second(beta2) == pytest.approx(-mean / squares**0.5, rel=1e-5)
