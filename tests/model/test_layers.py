"""Attention and rotary embeddings, tested separately."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vipllava_jax.config import Config
from vipllava_jax.model.layers import attend, attend_weights, rope
from vipllava_jax.model.llama import write


def qkv(rng, T, S, dtype=np.float32):
    return [jnp.asarray(rng.normal(size=(2, n, heads, 8)), dtype) for n, heads in ((T, 6), (S, 2), (S, 2))]


def test_a_query_sees_the_slots_up_to_its_own(rng):
    q, k, v = qkv(rng, 3, 7)
    start = jnp.array([0, 4])
    _, weights = attend_weights(q, k, v, start=start)
    for row in range(2):
        for t in range(3):
            seen = weights[row, :, t] > 0
            assert seen[:, : start[row] + t + 1].all()
            assert not seen[:, start[row] + t + 1 :].any()
    np.testing.assert_allclose(attend(q, k, v, start=0), attend(q, k, v, start=jnp.zeros(2, int)), atol=1e-6)


def test_grouped_queries_are_repeated_keys(rng):
    q, k, v = qkv(rng, 5, 5)
    repeated = attend(q, jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2), start=0)
    np.testing.assert_allclose(attend(q, k, v, start=0), repeated, atol=1e-6)


def test_hidden_slots_have_no_weight(rng):
    q, k, v = qkv(rng, 4, 4)
    mask = jnp.array([[True, False, True, True], [True, True, True, False]])
    _, weights = attend_weights(q, k, v, mask=mask)
    assert (weights[~jnp.broadcast_to(mask[:, None, None], weights.shape)] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('T', [4, 5])
def test_cudnn_is_only_asked_for_gradients_that_it_has(causal, T, rng, monkeypatch):
    """The gradient for an odd number of slots equals that for one slot more; XLA computes both here."""
    real = jax.nn.dot_product_attention
    refused = jax.custom_jvp(lambda x: x)

    @refused.defjvp
    def _(primals, tangents):
        raise NotImplementedError('an odd number of slots')

    def cudnn(q, k, v, implementation, **more):
        return real(refused(q) if q.shape[1] % 2 else q, k, v, implementation='xla', **more)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', cudnn)
    q, k, v = qkv(rng, T, T, jnp.bfloat16)
    start = 0 if causal else None

    def total(implementation):
        def f(q, k, v):
            y = attend(q, k, v, start=start, implementation=implementation)
            return jnp.sum(jnp.float32(y) * jnp.arange(8))

        return jax.value_and_grad(f, argnums=(0, 1, 2))(q, k, v)

    for ours, plain in zip(*map(jax.tree.leaves, (total('cudnn'), total('xla'))), strict=True):
        scale = float(jnp.abs(jnp.float32(plain)).max())
        np.testing.assert_allclose(jnp.float32(ours), jnp.float32(plain), atol=0.02 * scale)


def test_what_cudnn_cannot_do_is_said(rng):
    with pytest.raises(ValueError, match='half precision'):
        attend(*qkv(rng, 3, 3), start=0, implementation='cudnn')
    with pytest.raises(ValueError, match="attention is 'flash'"):
        Config(attention='flash')


def test_a_turn_depends_on_the_distance_alone(rng):
    x, y = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in 'xy')

    def product(i, j):
        return float(jnp.sum(rope(x, jnp.array([[i]]), 10000.0) * rope(y, jnp.array([[j]]), 10000.0)))

    assert product(3, 8) == pytest.approx(product(103, 108), abs=1e-4)
    assert product(3, 8) != pytest.approx(product(3, 9), abs=1e-4)


@pytest.mark.parametrize('start', [0, 2, 3, jnp.array([0, 3])])
def test_writes_past_the_end_are_dropped(start, rng):
    cached = jnp.zeros((2, 4, 1, 2))
    new = jnp.asarray(rng.normal(size=(2, 2, 1, 2)), jnp.float32)
    expected = np.zeros((2, 4, 1, 2), np.float32)
    for row, first in enumerate(np.broadcast_to(start, 2)):
        for t in range(2):
            if first + t < 4:
                expected[row, first + t] = new[row, t]
    np.testing.assert_array_equal(write(cached, new, start), expected)
