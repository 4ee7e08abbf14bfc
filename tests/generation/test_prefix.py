"""Answers after a prefix that was computed before are those to whole prompts."""

import jax
import numpy as np
import pytest

import vipllava_jax as vj
from tests.generation.test_meshes import on_mesh
from tests.rows import ragged
from vipllava_jax.generation import plan
from vipllava_jax.generation.prefix import compute_prefix
from vipllava_jax.inputs.batch import Batch

RUN = {'max_new_tokens': 20, 'eos': ()}
VARIANTS = {
    'greedy': {},
    'sampled': {'temperature': 1.0, 'seed': 3, 'num_return_sequences': 2},
    'processed': {'repetition_penalty': 1.3, 'no_repeat_ngram_size': 2, 'logprobs': 2},
    'lookup': {'prompt_lookup_num_tokens': 4},
}


@pytest.fixture
def prompts(cfg, rng):
    """The ids and the picture that three prompts begin with, and the prompts; the last has two pictures."""
    pictures = rng.normal(size=(3, 2, 28, 28, 3)).astype(np.float32)
    pictures[:, 0], pictures[:2, 1] = pictures[0, 0], 0
    placeholders = [cfg.image_token] * cfg.vision.patches
    first = [cfg.bos, 5, *placeholders, 7, 8]
    rows = [[*first, *rng.integers(3, 100, n)] for n in (4, 9, 6)]
    rows[2][-2:-2] = placeholders
    tokens = np.full((3, 48), cfg.pad, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([*map(len, rows)], np.int32)
    return np.array(first), pictures[0, :1], Batch(tokens, lengths, pictures, np.array([1, 1, 2], np.int32))


@pytest.mark.parametrize(
    'variant',
    ['greedy', *(pytest.param(v, marks=pytest.mark.slow) for v in ('sampled', 'processed', 'lookup'))],
)
def test_answers_equal_those_without_a_prefix(params, cfg, prompts, variant):
    ids, pictures, batch = prompts
    prefix = compute_prefix(params, ids, pictures, cfg=cfg)
    settings = RUN | VARIANTS[variant]
    expected = vj.generate(params, batch, cfg=cfg, **settings)
    found = vj.generate(params, batch, cfg=cfg, prefix=prefix, **settings)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    if expected.logprobs is not None:
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    assert repr(prefix) == 'Prefix(ids=int32[8], images=float32[1,28,28,3])'


@pytest.mark.slow
@pytest.mark.parametrize('axes', [{'data': 2}, {'tensor': 2}, {'data': 2, 'tensor': 2}], ids=str)
def test_a_mesh_changes_nothing(params, cfg, prompts, axes):
    ids, pictures, batch = prompts
    expected = vj.generate(params, batch, cfg=cfg, **RUN)
    sharded = on_mesh(params, axes)
    prefix = compute_prefix(sharded, ids, pictures, cfg=cfg)
    found = vj.generate(sharded, batch, cfg=cfg, prefix=prefix, **RUN)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


@pytest.mark.slow
@pytest.mark.parametrize('axes', [None, {'data': 2, 'tensor': 2}], ids=str)
def test_samples_that_share_their_prompt_are_those_that_do_not(params, cfg, rng, monkeypatch, axes):
    batch = ragged(cfg, rng, [(9, 2), (4, 0), (15, 1)], T=32)
    params = params if axes is None else on_mesh(params, axes)
    settings = RUN | {'temperature': 1.0, 'seed': 3, 'num_return_sequences': 4, 'repetition_penalty': 1.2}
    shared = vj.generate(params, batch, cfg=cfg, **settings)
    monkeypatch.setattr(plan, 'SHARING_ROWS', 100)
    np.testing.assert_array_equal(shared.tokens, vj.generate(params, batch, cfg=cfg, **settings).tokens)


def test_a_row_that_begins_otherwise_is_named(params, cfg, prompts):
    ids, pictures, batch = prompts
    shapes = jax.eval_shape(lambda: params)
    prefix = compute_prefix(params, ids, pictures, cfg=cfg)
    other = batch._replace(tokens=batch.tokens.copy(), images=batch.images.copy())
    other.tokens[1, 6] += 1
    with pytest.raises(ValueError, match='row 1 does not begin with the 8 ids .* from id 6 on'):
        vj.generate(shapes, other, cfg=cfg, prefix=prefix)
    other.tokens[1, 6] -= 1
    other.images[2, 0, 0, 0, 0] += 1e-3
    with pytest.raises(ValueError, match='row 2 has other images than the prefix'):
        vj.generate(shapes, other, cfg=cfg, prefix=prefix)
    alone = batch._replace(lengths=np.array([8, *batch.lengths[1:]], np.int32))
    with pytest.raises(ValueError, match='row 0 does not begin .* from id 8 on'):
        vj.generate(shapes, alone, cfg=cfg, prefix=prefix)


@pytest.mark.slow
def test_the_prefix_of_questions_about_a_picture(demo_model):
    picture = 'docs/coffee.jpg'
    questions = ['What is in the middle?', 'How many things are there?']
    batch = demo_model.processor(questions, [picture] * 2)
    prefix = vj.prefix(demo_model, '', picture)
    assert len(prefix) > demo_model.cfg.vision.patches
    found = vj.generate(demo_model.params, batch, cfg=demo_model.cfg, prefix=prefix, max_new_tokens=8)
    expected = vj.generate(demo_model.params, batch, cfg=demo_model.cfg, max_new_tokens=8)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    longer = vj.prefix(demo_model, 'What is in', picture)
    assert len(longer) > len(prefix)
    np.testing.assert_array_equal(longer.ids[: len(prefix)], prefix.ids)
    with pytest.raises(ValueError, match='row 1 does not begin'):
        vj.generate(demo_model.params, batch, cfg=demo_model.cfg, prefix=longer)
    text = vj.prefix(demo_model, 'What is in the middle of it? Answer')
    assert len(text.ids)
    assert not len(text.images)


@pytest.mark.slow
def test_beams_check_the_prefix_and_are_those_without(params, cfg, prompts):
    ids, pictures, batch = prompts
    prefix = compute_prefix(params, ids, pictures, cfg=cfg)
    settings = RUN | {'num_beams': 2}
    found = vj.generate(params, batch, cfg=cfg, prefix=prefix, **settings)
    np.testing.assert_array_equal(found.tokens, vj.generate(params, batch, cfg=cfg, **settings).tokens)
    other = batch._replace(tokens=batch.tokens.copy())
    other.tokens[0, 1] += 1
    with pytest.raises(ValueError, match='row 0 does not begin'):
        vj.generate(params, other, cfg=cfg, prefix=prefix, **settings)
