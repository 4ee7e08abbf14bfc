"""Attention of both implementations: which slots a query attends to, gradients, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vipllava_jax.config import Config
from vipllava_jax.model.attention import attend, attention_with_weights


def random_qkv(rng, T, S, dtype=np.float32):
    return [jnp.asarray(rng.normal(size=(2, n, heads, 8)), dtype) for n, heads in ((T, 6), (S, 2), (S, 2))]


def test_a_query_attends_to_the_slots_up_to_its_own(rng):
    q, k, v = random_qkv(rng, 3, 7)
    offset = jnp.array([0, 4])
    _, weights = attention_with_weights(q, k, v, causal=True, offset=offset)
    for row in range(2):
        for t in range(3):
            visible = weights[row, :, t] > 0
            assert visible[:, : offset[row] + t + 1].all()
            assert not visible[:, offset[row] + t + 1 :].any()
    np.testing.assert_allclose(
        attend(q, k, v, causal=True), attend(q, k, v, causal=True, offset=jnp.zeros(2, int)), atol=1e-6
    )


def test_grouped_queries_are_the_same_as_repeated_keys(rng):
    q, k, v = random_qkv(rng, 5, 5)
    repeated = attend(q, jnp.repeat(k, 3, axis=2), jnp.repeat(v, 3, axis=2), causal=True)
    np.testing.assert_allclose(attend(q, k, v, causal=True), repeated, atol=1e-6)


def test_hidden_slots_have_no_weight(rng):
    q, k, v = random_qkv(rng, 4, 4)
    mask = jnp.array([[True, False, True, True], [True, True, True, False]])
    _, weights = attention_with_weights(q, k, v, causal=False, mask=mask)
    assert (weights[~jnp.broadcast_to(mask[:, None, None], weights.shape)] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ('causal', 'offset', 'message'),
    [
        (True, 0, r'shape \(2,\), one slot per row, or None for slot 0, found int of the shape \(\)'),
        (True, 3, 'found int'),
        (True, jnp.array(3), r'of the shape \(\)'),
        (True, jnp.array([3]), r'of the shape \(1,\)'),
        (False, jnp.array([0, 4]), 'every query attends to all slots'),
        (False, 0, 'every query attends to all slots'),
    ],
)
@pytest.mark.parametrize('function', [attend, attention_with_weights])
def test_other_offsets_are_refused(function, causal, offset, message, rng):
    with pytest.raises(ValueError, match=f'^offset: .*{message}'):
        function(*random_qkv(rng, 3, 7), causal=causal, offset=offset)


@pytest.mark.parametrize(
    ('T', 'options', 'expected'),
    [
        (5, dict(causal=True), (True, None)),
        (5, dict(causal=False), (False, None)),
        (1, dict(causal=True, offset=jnp.array([0, 6])), (False, [1, 7])),
        (1, dict(causal=True, offset=jnp.array([0, 9])), (False, [1, 7])),  # no more than all slots
        (3, dict(causal=True, offset=jnp.array([0, 4])), None),
        (5, dict(causal=False, mask=jnp.ones((2, 7), bool)), None),
    ],
)
def test_cudnn_computes_causal_attention_and_single_queries(T, options, expected, rng, monkeypatch):
    calls = []

    def cudnn(q, k, v, *, is_causal, key_value_seq_lengths, implementation):
        assert implementation == 'cudnn'
        lengths = key_value_seq_lengths
        calls.append((is_causal, lengths if lengths is None else lengths.tolist()))
        return q

    monkeypatch.setattr(jax.nn, 'dot_product_attention', cudnn)
    attend(*random_qkv(rng, T, 7, jnp.bfloat16), implementation='cudnn', **options)
    assert calls == ([] if expected is None else [expected])


@pytest.mark.slow
@pytest.mark.parametrize('causal', [True, False])
@pytest.mark.parametrize('T', [4, 5])
def test_cudnn_computes_only_the_gradients_that_it_supports(causal, T, rng, monkeypatch):
    """The gradient for an odd number of slots equals that for one slot more; XLA computes both here."""
    real = jax.nn.dot_product_attention
    refused = jax.custom_jvp(lambda x: x)

    @refused.defjvp
    def _(primals, tangents):
        raise NotImplementedError('an odd number of slots')

    def cudnn(q, k, v, implementation, **options):
        return real(refused(q) if q.shape[1] % 2 else q, k, v, implementation='xla', **options)

    monkeypatch.setattr(jax.nn, 'dot_product_attention', cudnn)
    q, k, v = random_qkv(rng, T, T, jnp.bfloat16)

    def total(implementation):
        def f(q, k, v):
            y = attend(q, k, v, causal=causal, implementation=implementation)
            return jnp.sum(jnp.float32(y) * jnp.arange(8))

        return jax.value_and_grad(f, argnums=(0, 1, 2))(q, k, v)

    for actual, expected in zip(*map(jax.tree.leaves, (total('cudnn'), total('xla'))), strict=True):
        scale = float(jnp.abs(jnp.float32(expected)).max())
        np.testing.assert_allclose(jnp.float32(actual), jnp.float32(expected), atol=0.02 * scale)


def test_cudnn_refuses_float32(rng):
    with pytest.raises(ValueError, match='half precision'):
        attend(*random_qkv(rng, 3, 3), causal=True, implementation='cudnn')


def test_the_config_refuses_an_unknown_implementation():
    with pytest.raises(ValueError, match="attention is 'flash'"):
        Config(attention='flash')
