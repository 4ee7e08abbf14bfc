"""Results equal those of transformers, on tiny random models that it has saved."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests import peer
from tests.conftest import TINY
from tests.rows import ragged
from vipllava_jax.model import vocabulary

pytestmark = pytest.mark.parity
ROWS = [(9, 2), (6, 0), (15, 1), (7, 3)]
forward = jax.jit(vj.forward, static_argnames=('cfg', 'trace'))


def changed(**text) -> vj.Config:
    return dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, **text))


MODELS = {
    'grouped queries, five layers': (TINY, {}),
    'one key per query': (changed(kv_heads=6), {}),
    'another head size, base and epsilon': (changed(head_size=14, rope_theta=500.0, eps=1e-3), {}),
    'tied': (changed(tied=True), {}),
    'one layer, as a number': (dataclasses.replace(TINY, feature_layers=(-3,)), {'vision_feature_layer': -3}),
    'two layers, unsorted': (dataclasses.replace(TINY, feature_layers=(-1, 2)), {}),
    'LLaVA-1.5': (dataclasses.replace(TINY, feature_layers=(-2,), projector_norm=False), {}),
}


@pytest.fixture(params=MODELS, scope='module')
def pair(request, tmp_path_factory):
    """A transformers model, and our model loaded from its folder."""
    cfg, fields = MODELS[request.param]
    theirs = peer.model(cfg, **fields)
    folder = tmp_path_factory.mktemp('peer')
    theirs.save_pretrained(folder)
    ours = vj.load(folder)
    assert dataclasses.replace(ours.cfg, attention=None) == cfg
    return theirs, ours


def test_all_intermediate_results_of_a_ragged_batch(pair, rng):
    theirs, (params, cfg, *_) = pair
    batch = ragged(cfg, rng, ROWS)
    real = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    theirs.set_attn_implementation('eager')
    a = peer.run(theirs, batch, output_hidden_states=True, output_attentions=True)
    b = forward(params, batch.tokens, batch.images, image_counts=batch.image_counts, cfg=cfg, trace=True)
    np.testing.assert_allclose(b.logits[real], a.logits.numpy()[real], atol=1e-4)
    assert len(b.hidden_states) == len(a.hidden_states)
    for x, y in zip(b.hidden_states, a.hidden_states, strict=True):
        np.testing.assert_allclose(x[real], y.numpy()[real], atol=1e-5)
    for x, y in zip(b.attentions, a.attentions, strict=True):
        np.testing.assert_allclose(x.swapaxes(1, 2)[real], y.numpy().swapaxes(1, 2)[real], atol=1e-5)
    features = np.concatenate([row[:n] for row, n in zip(b.image_features, batch.image_counts, strict=True)])
    np.testing.assert_allclose(features, peer.image_features(a).reshape(features.shape), atol=1e-5)


def test_greedy_answers_of_a_ragged_batch(pair, rng):
    theirs, (params, cfg, *_) = pair
    batch = ragged(cfg, rng, ROWS)
    expected = peer.greedy(theirs, batch, 64)
    np.testing.assert_array_equal(
        vj.generate(params, batch, cfg=cfg, max_new_tokens=64, eos=()).tokens, expected
    )


@pytest.mark.parametrize('pair', ['grouped queries, five layers'], indirect=True)
def test_embeddings_positions_and_padding(pair, rng):
    import torch

    theirs, (params, cfg, *_) = pair
    batch = ragged(cfg, rng, [(9, 1), (11, 1)])
    embeddings = np.array(vocabulary.embeddings(params))[batch.tokens]
    positions = np.sort(rng.integers(0, 90, batch.tokens.shape))
    mask = rng.random(batch.tokens.shape) < 0.8
    mask[:, 0] = True
    with torch.no_grad():
        expected = theirs(
            inputs_embeds=torch.tensor(embeddings),
            pixel_values=peer.pixel_values(batch),
            position_ids=torch.tensor(positions),
            attention_mask=torch.tensor(mask, dtype=torch.long),
        ).logits.numpy()
    got = forward(params, embeddings=embeddings, images=batch.images, positions=positions, mask=mask, cfg=cfg)
    np.testing.assert_allclose(got[mask], expected[mask], atol=1e-4)


@pytest.mark.parametrize('pair', ['grouped queries, five layers', 'LLaVA-1.5'], indirect=True)
def test_bfloat16_errors_are_not_larger_than_those_of_transformers(pair, rng):
    import torch

    theirs, (params, cfg, *_) = pair
    batch = ragged(cfg, rng, ROWS)
    real = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    ours = forward(half, batch.tokens, batch.images, image_counts=batch.image_counts, cfg=cfg)
    exact = peer.run(theirs, batch).logits.numpy()
    bf16 = peer.run(copy.deepcopy(theirs).to(torch.bfloat16), batch).logits.float().numpy()

    def error(logits):
        return np.linalg.norm((logits - exact)[real]) / np.linalg.norm(exact[real])

    assert error(ours) <= 1.1 * error(bf16)  # 10 % margin for random rounding errors
