"""Inputs that do not fit each other or the config are refused before anything runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.rows import ragged

ROWS = [(9, 2), (4, 0), (15, 1), (7, 3)]


@pytest.fixture
def batch(cfg, rng):
    return ragged(cfg, rng, ROWS)


@pytest.mark.slow
def test_extend_checks_its_inputs_before_it_runs(params, cfg, rng):
    batch = ragged(cfg, rng, [(9, 2), (4, 0)])
    cache = vj.prefill(params, batch.tokens[1:, :4].repeat(2, 0), slots=40, cfg=cfg)[1]
    images, counts, lengths = batch.images, batch.image_counts, batch.lengths
    for tokens, start, given, message in [
        (batch.tokens, [4, 4], {}, 'row 0 has 8 image placeholders .* needs 0'),
        (jnp.asarray(batch.tokens), [4, 4], dict(images=images), 'row 1 has 0 image placeholders .* needs 8'),
        (
            batch.tokens,
            [4, 4],
            dict(images=images, image_counts=counts, lengths=[18, 0]),
            'row 1 has a length of 0',
        ),
        (batch.tokens, 4, dict(images=images, image_counts=counts), r'start has the shape \(\), but 2 rows'),
        (jnp.asarray(batch.tokens), [4], {}, r'start has the shape \(1,\), but 2 rows'),
        (batch.tokens, [4, 4], dict(lengths=lengths[:1]), r'lengths has the shape \(1,\)'),
        (batch.tokens[:1], [4], dict(images=images[:1]), 'the cache has 2 rows, but the tokens have 1'),
    ]:
        with pytest.raises(ValueError, match=message):
            vj.extend(params, tokens, cache, start, cfg=cfg, **given)


def test_inputs_that_do_not_match_are_refused(params, cfg, batch):
    tokens, images, counts = batch.tokens, batch.images, batch.image_counts
    short = tokens.copy()
    short[2][short[2] == cfg.image_token] = 5
    embeddings = params['llama']['embed']['w'][tokens]
    for (given, pictures, settings), message in [
        (
            (short, images, dict(image_counts=counts)),
            'row 2 has 0 image placeholders .* needs 4 for its 1 × 4',
        ),
        ((tokens, None, {}), 'row 0 has 8 image placeholders .* needs 0 for its 0'),
        ((tokens[:2], images[:2], dict(image_counts=[2, 3])), 'row 1 has 0 .* its 3 ×'),
        ((tokens, images, {}), 'row 0 has 8 .* needs 12 for its 3 × 4'),
        (
            (tokens, images[:, :2], dict(image_counts=counts)),
            'row 3 has an image_count of 3, but images hold 2',
        ),
        ((None, images, dict(embeddings=embeddings)), 'row 0 has 8 .* needs 12'),
        ((tokens, images[:1], {}), r'images have the shape \(1, 3.* 4 rows of tokens take 4×I×28×28×3'),
        ((tokens, np.zeros((4, 3, 30, 30, 3)), {}), r'30, 30.* take 4×I×28×28×3'),
        ((tokens, images[:, 0], {}), 'images have the shape'),
        ((tokens, images, dict(image_counts=counts[:2])), r'image_counts has the shape \(2,\)'),
        ((tokens[0], images, {}), r'tokens have the shape'),
        ((tokens, images, dict(embeddings=embeddings)), 'exactly one'),
        ((None, None, {}), 'exactly one'),
        ((None, None, dict(embeddings=embeddings[0])), 'embeddings have the shape'),
        ((tokens, images, dict(image_counts=counts, feature_layers=(1, 2))), 'takes 3 feature_layers, not 2'),
    ]:
        with pytest.raises(ValueError, match=message):
            vj.forward(params, given, pictures, cfg=cfg, **settings)
    with pytest.raises(ValueError, match='slots'):
        vj.prefill(params, tokens[1:2], slots=2, cfg=cfg)
    for length in (0, 99):
        with pytest.raises(ValueError, match=f'row 0 has a length of {length}'):
            vj.prefill(params, tokens[1:2], lengths=[length], slots=99, cfg=cfg)
    with pytest.raises(ValueError, match='images have the shape'):  # shapes are known under jit, too
        jax.jit(vj.forward, static_argnames='cfg')(params, tokens, images[:1], cfg=cfg)


@pytest.mark.parametrize('id', [-1, -100, 128, 5000, 2**31 - 1])
def test_ids_without_a_row_in_the_embedding_are_refused(params, cfg, id):
    tokens = np.array([[1, 5, 6, cfg.pad], [1, id, 6, 7]], np.int32)
    cache = vj.prefill(params, tokens[:, :1], slots=8, cfg=cfg)[1]
    message = f'row 1 has the token id {id} at position 1, but the embedding of the model has 128 rows'
    for call in (
        lambda: vj.forward(params, tokens, cfg=cfg),
        lambda: vj.forward(params, jnp.asarray(tokens), cfg=cfg),
        lambda: vj.forward(params, tokens.tolist(), cfg=cfg),
        lambda: vj.prefill(params, tokens, lengths=[3, 4], slots=8, cfg=cfg),
        lambda: vj.extend(params, tokens, cache, [1, 1], cfg=cfg),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    vj.prefill(params, tokens, lengths=[4, 1], slots=8, cfg=cfg)  # tokens beyond the lengths may have any id


def test_padding_needs_no_row_in_the_embedding(params, cfg):
    wide = dataclasses.replace(cfg, pad=5000)
    tokens = np.array([[1, 5, 6, 5000]], np.int32)
    given = np.asarray(vj.forward(params, tokens, cfg=wide))[:, :3]
    np.testing.assert_allclose(given, vj.forward(params, tokens[:, :3], cfg=cfg), atol=2e-5)
