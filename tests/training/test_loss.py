"""The loss agrees with the logits of `forward` at the target tokens, for every `remat`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.rows import alone, examples, ragged
from vipllava_jax.data.conversations import IGNORE
from vipllava_jax.data.examples import Examples
from vipllava_jax.training import loss as module
from vipllava_jax.training.loss import loss

ROWS = [(9, 2), (6, 0), (15, 1), (7, 3)]


@pytest.fixture
def batch(cfg, rng):
    return ragged(cfg, rng, ROWS)


forward = jax.jit(vj.forward, static_argnames='cfg')


def value(params, batch, cfg, remat='none'):  # traced each time, because AT_ONCE is not an argument
    return jax.jit(lambda params, batch: loss(params, batch, cfg, remat))(params, batch)


def gradient(params, batch, cfg, remat='none'):
    return jax.jit(jax.grad(lambda params: loss(params, batch, cfg, remat)[0]))(params)


@pytest.mark.parametrize('at_once', [1, 30, 10_000])
def test_the_loss_is_the_cross_entropy_of_the_target_tokens(params, cfg, batch, at_once, monkeypatch):
    monkeypatch.setattr(module, 'AT_ONCE', at_once * cfg.text.vocab)
    some = examples(batch, cfg)
    logits = forward(params, batch.tokens, batch.images, image_counts=batch.image_counts, cfg=cfg)
    likely = np.asarray(jax.nn.log_softmax(logits))
    expected = [
        likely[row, t, target] for (row, t), target in np.ndenumerate(some.targets) if target != IGNORE
    ]
    total, count = value(params, some, cfg)
    assert count == len(expected)
    np.testing.assert_allclose(total, -np.sum(expected), rtol=1e-5)


@pytest.mark.slow
def test_other_rows_and_padding_do_not_change_the_loss(params, cfg, rng, batch):
    wide = batch._replace(tokens=np.pad(batch.tokens, ((0, 0), (0, 9)), constant_values=3))
    total, count = value(params, examples(wide, cfg), cfg)
    rows = [value(params, examples(alone(batch, row), cfg), cfg) for row in range(len(ROWS))]
    assert count == sum(count for _, count in rows)
    np.testing.assert_allclose(total, sum(total for total, _ in rows), rtol=1e-5)


@pytest.mark.slow
def test_the_loss_without_target_tokens_is_zero(params, cfg, batch):
    nothing = examples(batch, cfg)
    nothing.targets[:] = IGNORE
    total, count = value(params, nothing, cfg)
    assert (total, count) == (0, 0)
    assert all((g == 0).all() for g in jax.tree.leaves(gradient(params, nothing, cfg)))


@pytest.mark.slow
def test_rematerialization_does_not_change_the_gradient(params, cfg, batch):
    some = examples(batch, cfg)
    kept, again = gradient(params, some, cfg), gradient(params, some, cfg, 'layers')
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), again, kept)


def test_rematerialized_values_are_not_saved(params, cfg, batch):
    def size(remat):
        backward = jax.eval_shape(
            lambda params: jax.vjp(lambda p: loss(p, examples(batch, cfg), cfg, remat)[0], params)[1], params
        )
        return sum(x.size for x in jax.tree.leaves(backward))

    assert size('layers') < size('products') < size('none')


def test_an_unknown_remat_is_refused(params, cfg, batch):
    with pytest.raises(ValueError, match="remat is 'all', but must be one of none, products, layers"):
        value(params, examples(batch, cfg), cfg, 'all')


@pytest.mark.parametrize('tied', [pytest.param(False, marks=pytest.mark.by_hand), True])
@pytest.mark.slow
def test_gradients_of_embeddings_and_head_are_summed_in_float32(params, cfg, tied, monkeypatch):
    if tied:
        params, cfg = vj.tie(params, cfg)
    monkeypatch.setattr(module, 'AT_ONCE', 1)
    T = 2000
    tokens = np.full((1, T), 7, np.int32)
    some = Examples(tokens, tokens + 1, np.zeros((1, 0, 28, 28, 3)), np.zeros(1, int))
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    exact = gradient(jax.tree.map(lambda w: w.astype(jnp.float32), half), some, cfg)['llama']
    near = gradient(half, some, cfg)['llama']
    for name in ('embed',) if tied else ('embed', 'head'):
        a, b = (np.asarray(g[name]['w'], np.float32) for g in (near, exact))
        assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(b)
