"""Properties of the whole model that hold whatever the weights are."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.rows import alone, ragged

ROWS = [(9, 2), (4, 0), (15, 1), (7, 3)]
close = partial(np.testing.assert_allclose, atol=2e-5, rtol=1e-5)


@pytest.fixture
def batch(cfg, rng):
    return ragged(cfg, rng, ROWS)


forward = jax.jit(vj.forward, static_argnames=('cfg', 'trace', 'feature_layers'))
extend = jax.jit(vj.extend, static_argnames=('cfg', 'last_only'))
decode = jax.jit(vj.decode, static_argnames='cfg')
prefill = jax.jit(vj.prefill, static_argnames=('cfg', 'slots'))


def run(params, batch, cfg, **settings):
    return forward(params, batch.tokens, batch.images, image_counts=batch.image_counts, cfg=cfg, **settings)


def test_the_published_models_have_the_published_sizes():
    for cfg, total in [(vj.VIP_LLAVA_7B, 7_080_214_528), (vj.VIP_LLAVA_13B, 13_372_476_416)]:
        assert sum(x.size for x in jax.tree.leaves(vj.abstract(cfg))) == total


@pytest.mark.slow
def test_other_rows_do_not_change_the_logits(params, cfg, batch):
    logits = run(params, batch, cfg)
    for row, n in enumerate(batch.lengths):
        close(logits[row, :n], run(params, alone(batch, row), cfg)[0])


def test_later_tokens_do_not_change_the_logits(params, cfg, rng):
    embeddings = rng.normal(size=(1, 8, cfg.text.width)).astype(np.float32)

    def score(x):
        return forward(params, embeddings=x, cfg=cfg)[0, 4].sum()

    seen = jnp.abs(jax.grad(score)(embeddings)[0]).sum(axis=-1)
    assert (seen[:5] > 0).all()
    assert (seen[5:] == 0).all()


def test_masked_padding_on_the_left_does_not_change_the_logits(params, cfg, batch):
    row = alone(batch, 0)
    pad = 5
    tokens = np.pad(row.tokens, ((0, 0), (pad, 0)), constant_values=cfg.pad)
    positions = np.maximum(np.arange(tokens.shape[1]) - pad, 0)[None]
    mask = np.arange(tokens.shape[1])[None] >= pad
    padded = forward(params, tokens, row.images, cfg=cfg, positions=positions, mask=mask)
    close(padded[:, pad:], run(params, row, cfg))


def test_prefill_and_decode_equal_forward(params, cfg, batch):
    expected = run(params, batch, cfg)
    short = batch.lengths - 3  # three real tokens of each row are left to decode
    tokens = np.where(np.arange(batch.tokens.shape[1]) < short[:, None], batch.tokens, cfg.pad)
    logits, cache = prefill(params, tokens, batch.images, lengths=short, slots=tokens.shape[1] + 8, cfg=cfg)
    rows = np.arange(len(short))
    close(logits, expected[rows, short - 1])
    for i in range(3):
        logits, cache = decode(params, batch.tokens[rows, short + i], cache, short + i, cfg=cfg)
        close(logits, expected[rows, short + i])


def test_extending_twice_equals_extending_once(params, cfg, rng):
    tokens = rng.integers(3, cfg.image_token, (2, 12))
    start = np.array([4, 4])
    _, cache = prefill(params, tokens[:, :4], slots=16, cfg=cfg)
    once, once_cache = extend(params, tokens[:, 4:], cache, start, cfg=cfg)
    first, cache = extend(params, tokens[:, 4:9], cache, start, cfg=cfg)
    second, cache = extend(params, tokens[:, 9:], cache, start + 5, cfg=cfg)
    close(np.concatenate([first, second], axis=1), once)
    jax.tree.map(close, cache, once_cache)


@pytest.mark.slow
def test_extending_with_images_and_padding_equals_forward(params, cfg, rng):
    """Rows of text in the cache are extended by rows of other lengths, some of which have images."""
    first = ragged(cfg, rng, [(5, 0), (9, 0), (4, 0)])
    batch = ragged(cfg, rng, [(9, 2), (4, 0), (7, 1)])
    _, cache = prefill(params, first.tokens, lengths=first.lengths, slots=40, cfg=cfg)
    given = dict(images=batch.images, image_counts=batch.image_counts, lengths=batch.lengths, cfg=cfg)
    logits, extended = extend(params, batch.tokens, cache, first.lengths, **given)
    last, same_cache = extend(params, batch.tokens, cache, first.lengths, last_only=True, **given)
    assert last.shape == (3, cfg.text.vocab)
    jax.tree.map(close, extended, same_cache)
    for row, n in enumerate(batch.lengths):
        before = first.tokens[row, : first.lengths[row]]
        tokens = np.concatenate([before, batch.tokens[row, :n]])[None]
        images = batch.images[row : row + 1, : batch.image_counts[row]]
        expected = forward(params, tokens, images, cfg=cfg)[0]
        close(logits[row, :n], expected[len(before) :])
        close(last[row], expected[-1])
        following = np.array([7, 8, 9])
        decoded, _ = decode(params, following, extended, first.lengths + batch.lengths, cfg=cfg)
        expected = forward(params, np.append(tokens[0], following[row])[None], images, cfg=cfg)[0, -1]
        close(decoded[row], expected)


def test_keys_and_values_past_the_last_slot_are_dropped(params, cfg, rng):
    tokens = rng.integers(3, cfg.image_token, (1, 6))
    _, cache = prefill(params, tokens, slots=6, cfg=cfg)
    _, after = decode(params, tokens[:, 0], cache, np.array([6]), cfg=cfg)
    jax.tree.map(np.testing.assert_array_equal, after, cache)


def test_embeddings_replace_tokens(params, cfg, batch):
    embeddings = params['llama']['embed']['w'][batch.tokens]
    got = forward(params, embeddings=embeddings, images=batch.images, cfg=cfg)
    close(got, run(params, batch, cfg))


@pytest.mark.slow
def test_embeddings_are_cast_to_the_dtype_of_the_weights(cfg, rng):
    half = vj.init(jax.random.key(1), cfg, jnp.bfloat16)
    embeddings = rng.normal(size=(1, 5, cfg.text.width)).astype(np.float32)
    trace = forward(half, embeddings=embeddings, cfg=cfg, trace=True)
    assert trace.hidden_states[1].dtype == jnp.bfloat16


def test_a_trace_holds_all_intermediate_results(params, cfg, batch):
    trace = run(params, batch, cfg, trace=True)
    B, T = batch.tokens.shape
    text = cfg.text
    assert [x.shape for x in trace.hidden_states] == [(B, T, text.width)] * (text.layers + 1)
    assert [x.shape for x in trace.attentions] == [(B, text.heads, T, T)] * text.layers
    assert trace.image_features.shape == (B, 3, cfg.vision.patches, text.width)
    for weights in trace.attentions:
        close(weights.sum(axis=-1), 1)
        assert (np.triu(weights[0, 0], 1) == 0).all()
    close(trace.logits, run(params, batch, cfg))


def test_feature_layers_replace_those_of_the_config(params, cfg, batch):
    other = (1, 2, -1)
    got = run(params, batch, cfg, feature_layers=other)
    close(got, run(params, batch, dataclasses.replace(cfg, feature_layers=other)))
    assert np.abs(got - run(params, batch, cfg)).max() > 1e-3


def test_layers_after_the_deepest_tap_are_not_used(params, cfg, batch):
    cfg, unused = dataclasses.replace(cfg, feature_layers=(-2, -3, 1)), ['layers_2', 'post_norm']
    fewer = {**params, 'clip': {name: w for name, w in params['clip'].items() if name not in unused}}
    np.testing.assert_array_equal(run(fewer, batch, cfg), run(params, batch, cfg))


def test_an_error_names_a_missing_weight_and_one_of_another_shape(params, cfg, batch):
    missing = {**params, 'projector': {**params['projector'], 'linear_1': {}}}
    with pytest.raises(Exception, match='linear_1'):
        run(missing, batch, cfg)
    wrong = {**params, 'projector': {**params['projector'], 'norm': {'w': np.ones(7), 'b': np.ones(7)}}}
    with pytest.raises(Exception, match='norm'):
        run(wrong, batch, cfg)


@pytest.mark.slow
def test_bfloat16_stays_near_float32(cfg, batch):
    half = vj.init(jax.random.key(1), cfg, jnp.bfloat16)
    full = jax.tree.map(lambda w: w.astype(jnp.float32), half)
    trace = run(half, batch, cfg, trace=True)
    middle = (*trace.hidden_states, *trace.attentions, trace.image_features)
    assert {x.dtype for x in middle} == {jnp.dtype(jnp.bfloat16)}  # float32 pixels do not promote the dtype
    a, b = trace.logits, run(full, batch, cfg)
    assert a.dtype == jnp.float32
    assert np.linalg.norm(a - b) / np.linalg.norm(b) < 0.03
