"""Answers after a prefix that was computed before are those to whole prompts."""

import dataclasses

import jax
import numpy as np
import pytest

import vipllava_jax as vj
from tests.compilations import compilations
from tests.generation.test_meshes import on_mesh
from tests.rows import ragged
from vipllava_jax.generation import decoding, plan
from vipllava_jax.generation.prefix import compile_prefix, compute_prefix, prefix_of_row
from vipllava_jax.inputs.batch import Batch

RUN = {'max_new_tokens': 20, 'eos': ()}
NEVER = 10**9  # slots that would have to be saved
SAMPLES = {'temperature': 1.0, 'seed': 3, 'num_return_sequences': 2}
PROCESSED = {'repetition_penalty': 1.3, 'no_repeat_ngram_size': 2, 'logprobs': 2}
MESH = {'data': 2, 'tensor': 2}


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


@pytest.mark.slow
@pytest.mark.parametrize('saved', [1, NEVER], ids=['stored once', 'copied'])
def test_what_is_compiled_for_shapes_computes_the_answers_without_a_prefix(
    params, cfg, prompts, monkeypatch, saved
):
    ids, pictures, batch = prompts
    monkeypatch.setattr(plan, 'ENOUGH_SAVED', saved)
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params)
    placed = jax.device_put(params, sharding)
    with compilations('read_prompts|prefill_batch|decode_chunk') as compiled:
        prefix, wait = compile_prefix(shapes, ids, pictures, cfg=cfg)
        decoding.compile_for(shapes, batch, cfg=cfg, prefix=prefix, **RUN)
        wait()
        before = len(compiled)
        prefix = compute_prefix(placed, ids, pictures, cfg=cfg)
        found = vj.generate(placed, batch, cfg=cfg, prefix=prefix, **RUN)
        assert len(compiled) == before
    np.testing.assert_array_equal(found.tokens, vj.generate(params, batch, cfg=cfg, **RUN).tokens)
    assert repr(prefix) == 'Prefix(ids=int32[8], images=float32[1,28,28,3])'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('settings', 'saved'),
    [
        pytest.param({}, NEVER, marks=pytest.mark.by_hand),
        pytest.param(SAMPLES | PROCESSED, 1, marks=pytest.mark.by_hand),
        pytest.param({'prompt_lookup_num_tokens': 4}, 1, marks=pytest.mark.by_hand),
        ({'num_beams': 2, 'num_return_sequences': 2, 'logprobs': 0}, 1),
    ],
    ids=['copied', 'samples', 'lookup', 'beams'],
)
def test_answers_on_a_mesh_equal_those_without_a_prefix(params, cfg, prompts, monkeypatch, settings, saved):
    ids, pictures, batch = prompts
    settings = RUN | settings
    expected = vj.generate(params, batch, cfg=cfg, **settings)
    sharded = on_mesh(params, MESH)
    prefix = compute_prefix(sharded, ids, pictures, cfg=cfg)
    monkeypatch.setattr(plan, 'ENOUGH_SAVED', saved)
    found = vj.generate(sharded, batch, cfg=cfg, prefix=prefix, **settings)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    if expected.logprobs is not None:
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-5)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    'settings',
    [
        SAMPLES,
        pytest.param(
            {'num_beams': 3, 'max_new_tokens': 70, 'num_return_sequences': 2}, marks=pytest.mark.by_hand
        ),
    ],
    ids=['samples', 'beams'],
)
def test_rows_that_share_their_prompt_on_a_mesh_are_those_with_copies(
    params, cfg, rng, monkeypatch, settings
):
    batch = ragged(cfg, rng, [(9, 2), (4, 0), (15, 1)], T=32)
    expected = vj.generate(params, batch, cfg=cfg, **RUN | settings)
    monkeypatch.setattr(plan, 'ENOUGH_SAVED', 1)
    shared = vj.generate(on_mesh(params, MESH), batch, cfg=cfg, **RUN | settings)
    np.testing.assert_array_equal(shared.tokens, expected.tokens)
    if expected.sequence_scores is not None:
        np.testing.assert_allclose(shared.sequence_scores, expected.sequence_scores, atol=1e-4)


@pytest.mark.parametrize(
    ('rows', 'settings', 'has_prefix', 'once'),
    [
        (24, {}, True, False),
        (25, {}, True, True),
        (1, {'num_return_sequences': 64, 'temperature': 1.0}, True, True),
        (64, {}, False, False),
        (12, {'num_return_sequences': 2, 'temperature': 1.0}, False, False),
        (12, {'num_beams': 3}, False, True),
    ],
)
def test_keys_are_stored_once_where_that_saves_enough_slots(
    params, cfg, rng, rows, settings, has_prefix, once
):
    """A prefix and a prompt have 128 slots here."""
    batch = ragged(cfg, rng, [(9, 0)] * rows, T=128)._replace(tokens=np.full((rows, 128), 7, np.int32))
    prefix = compute_prefix(params, np.full(5, 7), batch.images[0, :0], cfg=cfg) if has_prefix else None
    chosen = vj.GenerationSettings(max_new_tokens=20, **settings)
    assert plan.make_plan(params, batch, cfg, chosen, None, prefix).share_keys == once


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
    larger = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, layers=cfg.text.layers + 1))
    with pytest.raises(ValueError, match=r'by another model: it has \d layers of .* not \d layers of'):
        vj.generate(shapes, batch, cfg=larger, prefix=prefix)
    with pytest.raises(TypeError, match='prefix is array.*, expected a Prefix'):
        vj.generate(shapes, batch, cfg=cfg, prefix=ids)


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
    with pytest.raises(ValueError, match='leaves no room for a question in the context of'):
        vj.prefix(demo_model, 'What is it? ' * 500)


def test_what_a_prefix_and_prompts_have_in_common(params, cfg, prompts):
    ids, pictures, batch = prompts
    P = cfg.vision.patches
    prefix = compute_prefix(params, ids, pictures, cfg=cfg)
    assert prefix.common_length(batch) == len(ids) == P + 4
    other = batch._replace(
        tokens=batch.tokens.copy(), images=batch.images.copy(), lengths=batch.lengths.copy()
    )
    other.tokens[1, P + 3] += 1
    assert prefix.common_length(other) == P + 3
    other.lengths[0] = P + 3
    assert prefix.common_length(other) == P + 2
    other.images[2, 0, 3, 4, 1] += 1e-3
    assert prefix.common_length(other) == 2  # the ids before the picture
    assert prefix.common_length(batch._replace(image_counts=np.array([1, 0, 2]))) == 2
    assert prefix.common_length(batch._replace(lengths=np.array([5, 8, 9]))) == 2  # within the picture
    assert len(prefix.cut(2).images) == 0
    with pytest.raises(ValueError, match='cannot be cut to 3 ids'):
        prefix.cut(3)
    shorter = prefix.cut(P + 3)
    known, _ = shorter.arrays.of_rows(shorter.arrays.slots, cfg.pad, 2)
    assert known[:, P + 2 : P + 4].tolist() == [[ids[P + 2], cfg.pad]] * 2  # nothing of what was cut off
    expected = vj.generate(params, batch, cfg=cfg, **RUN)
    found = vj.generate(params, batch, cfg=cfg, prefix=shorter, **RUN)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('settings', 'read'),
    [({}, 1), pytest.param({'prompt_lookup_num_tokens': 4}, 99, marks=pytest.mark.slow)],
    ids=['plain', 'lookup'],
)
def test_an_answer_continues_as_a_prefix(params, cfg, rng, settings, read):
    first = ragged(cfg, rng, [(9, 1)], T=32)
    tokens = vj.stream(params, first, cfg=cfg, **RUN, **settings)
    pieces = [piece for piece, _ in zip(tokens, range(read), strict=False)]
    prefix = tokens.computed()
    assert not [*tokens]
    n = int(first.lengths[0])
    np.testing.assert_array_equal(prefix.ids[:n], first.tokens[0, :n])
    answer = np.concatenate(pieces, axis=1)[0]
    np.testing.assert_array_equal(prefix.ids[n:][: answer.size], answer[: len(prefix) - n])
    ids = [*prefix.ids, *rng.integers(3, 100, 5)]
    batch = Batch(np.array([ids], np.int32), np.array([len(ids)], np.int32), first.images, first.image_counts)
    found = vj.generate(params, batch, cfg=cfg, prefix=prefix, **RUN)
    np.testing.assert_array_equal(found.tokens, vj.generate(params, batch, cfg=cfg, **RUN).tokens)


def test_a_prefix_ends_before_the_placeholder_of_an_image_that_the_model_has_generated(params, cfg, rng):
    first = ragged(cfg, rng, [(9, 1)], T=32)
    tokens = vj.stream(params, first, cfg=cfg, **RUN)
    next(tokens)
    n = int(first.lengths[0])
    assert len(tokens.computed()) > n + 3
    ids = tokens._state.ids.at[0, n + 2].set(cfg.image_token)
    prefix = prefix_of_row(dataclasses.replace(tokens._state, ids=ids), first.images[0], cfg)
    assert (len(prefix), len(prefix.images), len(prefix.spans)) == (n + 2, 1, 1)


def test_several_rows_do_not_become_a_prefix(params, cfg, rng):
    tokens = vj.stream(params, ragged(cfg, rng, [(9, 1), (4, 0)], T=32), cfg=cfg, **RUN)
    with pytest.raises(ValueError, match='only a batch of one row'):
        tokens.computed()
