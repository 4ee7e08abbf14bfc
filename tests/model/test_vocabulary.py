"""Resizing the vocabulary does not change the logits of the existing tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj

TOKENS = np.array([[1, 5, 9, 7]])


def test_new_tokens_do_not_change_old_logits(params, cfg):
    larger, wide = vj.resize_vocabulary(params, cfg, 130, pad_to_multiple_of=64)
    assert wide.text.vocab == 192
    old, new = vj.forward(params, TOKENS, cfg=cfg), vj.forward(larger, TOKENS, cfg=wide)
    np.testing.assert_allclose(new[..., :128], old, atol=1e-5)
    np.testing.assert_allclose(vj.embeddings(larger)[150], vj.embeddings(params).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(new[..., 150], old.mean(axis=-1), atol=1e-5)
    back, narrow = vj.resize_vocabulary(larger, wide, 128)
    assert narrow == cfg
    np.testing.assert_array_equal(vj.embeddings(back), vj.embeddings(params))


def test_untie_is_the_inverse_of_tie(params, cfg):
    tied, tied_cfg = vj.tie(params, cfg)
    assert 'head' not in tied['llama']
    logits = vj.forward(tied, TOKENS, cfg=tied_cfg)
    trace = vj.forward(params, TOKENS, cfg=cfg, trace=True)
    np.testing.assert_allclose(logits, trace.hidden_states[-1] @ vj.embeddings(params).T, atol=1e-5)
    untied, untied_cfg = vj.untie(tied, tied_cfg)
    assert untied_cfg == cfg
    np.testing.assert_allclose(vj.forward(untied, TOKENS, cfg=cfg), logits, atol=1e-5)
    assert vj.untie(params, cfg) == (params, cfg)


def test_replaced_embeddings_are_used(params, cfg):
    table = jnp.ones_like(vj.embeddings(params))
    np.testing.assert_array_equal(vj.embeddings(vj.replace_embeddings(params, table)), table)
    with pytest.raises(ValueError, match=r'expected the shape \(128, 48\), found \(3, 48\)'):
        vj.replace_embeddings(params, table[:3])
