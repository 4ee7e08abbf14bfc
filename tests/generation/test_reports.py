"""What is reported of tokens: log-probabilities of the model, and the scores that selected them."""

import jax
import numpy as np
import pytest

import vipllava_jax as vj
from tests.rows import alone, ragged

forward = jax.jit(vj.forward, static_argnames='cfg')


@pytest.fixture
def batch(cfg, rng):
    return ragged(cfg, rng, [(9, 2), (4, 0), (15, 1)], T=32)


def test_what_is_reported_of_greedy_tokens_follows_from_forward(params, cfg, batch):
    out = vj.generate(params, batch, cfg=cfg, max_new_tokens=9, eos=(), logprobs=3)
    for row, (n, answer) in enumerate(zip(batch.lengths, out, strict=True)):
        row = alone(batch, row)
        ids = np.concatenate([row.tokens[0], answer.tokens])
        tokens = np.full((1, 64), cfg.pad)
        tokens[0, : len(ids)] = ids
        logits = forward(params, tokens, row.images, cfg=cfg)[0, n - 1 : n + 8]
        log_p = jax.nn.log_softmax(logits)
        top, top_ids = jax.lax.top_k(log_p, 3)
        np.testing.assert_allclose(answer.top_logprobs, top, rtol=1e-4)
        np.testing.assert_array_equal(answer.top_ids, top_ids)
        np.testing.assert_allclose(answer.logprobs, top[:, 0], rtol=1e-4)
        np.testing.assert_allclose(answer.scores, logits.max(axis=-1), rtol=1e-4, atol=1e-5)
    only_chosen = vj.generate(params, batch, cfg=cfg, max_new_tokens=1, eos=(), logprobs=0)
    np.testing.assert_allclose(only_chosen.logprobs, out.logprobs[:, :1], rtol=1e-5)
    assert only_chosen.top_ids is only_chosen.top_logprobs is None


def test_reports_are_0_after_the_end(params, cfg, batch):
    first = vj.generate(params, batch, cfg=cfg, max_new_tokens=9, eos=(), logprobs=3)
    out = vj.generate(
        params, batch, cfg=cfg, max_new_tokens=[1, 9, 9], eos=int(first.tokens[1, 2]), logprobs=2
    )
    assert out.lengths[1] <= 3
    assert out.top_ids.shape == out.top_logprobs.shape == (*out.tokens.shape, 2)
    after = np.arange(out.tokens.shape[1]) >= out.lengths[:, None]
    for x in (out.logprobs, out.scores, out.top_ids, out.top_logprobs):
        assert not x[after].any()
        assert x[~after].any()
