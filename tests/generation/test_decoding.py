"""Answers do not depend on chunks, neighbours or padding, and nothing is compiled twice."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

import vipllava_jax as vj
from scripts.demo import exam
from tests.rows import alone, ragged
from vipllava_jax import placement
from vipllava_jax.generation import decoding

forward = jax.jit(vj.forward, static_argnames='cfg')
ROWS = [(9, 2), (4, 0), (15, 1)]


@pytest.fixture
def batch(cfg, rng):
    return ragged(cfg, rng, ROWS, T=32)


@pytest.fixture
def greedy(params, cfg, batch):
    """The greedy answer of each row, computed by a forward pass over the whole row for every token."""

    def answer(row):
        row = alone(batch, row)
        tokens, n = np.full((1, 64), cfg.pad), row.lengths[0]
        tokens[:, :n] = row.tokens
        for i in range(n, n + 20):
            logits = forward(params, tokens, row.images, cfg=cfg)
            tokens[0, i] = logits[0, i - 1].argmax()
        return tokens[0, n : n + 20]

    return np.array([answer(row) for row in range(len(ROWS))])


def test_greedy_is_the_argmax_of_forward(params, cfg, batch, greedy):
    out = vj.generate(params, batch, cfg=cfg, max_new_tokens=20, eos=())
    np.testing.assert_array_equal(out.tokens, greedy)
    assert (out.lengths == 20).all()
    assert not out.finished.any()
    # The end of one row's answer does not affect the other rows.
    end = int(greedy[0, 5])
    first = [(row == end).argmax() if end in row else 19 for row in greedy]
    out = vj.generate(params, batch, cfg=cfg, max_new_tokens=20, eos=[end])
    for row, last in enumerate(first):
        np.testing.assert_array_equal(out.tokens[row, : last + 1], greedy[row, : last + 1])
        assert (out.tokens[row, last + 1 :] == cfg.pad).all()
    np.testing.assert_array_equal(out.finished, [end in row for row in greedy])
    np.testing.assert_array_equal(out.lengths, np.array(first) + 1)


def test_neighbours_do_not_change_what_is_said(demo_model):
    """Four questions about pictures and one without, in a batch together and in batches of copies."""
    cases = [
        next(exam.of_type(type, 1)).example for type in ('kind', 'list', 'words', 'relation', 'describe')
    ]
    asked = [made.turns[0].text for made in cases]
    pictures = [[picture] if (picture := made.picture()) else [] for made in cases]

    def said(rows):
        batch = demo_model.processor([asked[row] for row in rows], [pictures[row] for row in rows])
        return demo_model.processor.decode(
            vj.generate(demo_model.params, batch, cfg=demo_model.cfg, max_new_tokens=64)
        )

    together = said(range(5))
    assert [*map(len, pictures)] == [1, 1, 0, 1, 1]
    assert len({*together}) == 5
    assert together == [said([row] * 5)[0] for row in range(5)]


def test_stream_yields_the_answer_in_pieces(params, cfg, batch):
    settings = dict(cfg=cfg, max_new_tokens=20, eos=(), temperature=1.0, seed=3)
    pieces = list(vj.stream(params, batch, **settings))
    assert len(pieces) > 2
    assert pieces[0].shape == (3, 1)
    whole = vj.generate(params, batch, **settings).tokens
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_end_ids_of_any_kind(params, cfg, batch):
    answers = [
        vj.generate(params, batch, cfg=cfg, max_new_tokens=4, eos=eos).tokens.tolist()
        for eos in (7, [7], (7,), np.array([7]), jnp.array(7), np.int64(7))
    ]
    assert all(answer == answers[0] for answer in answers)


def test_a_stream_ends_when_every_row_has(params, cfg, batch):
    every = range(cfg.text.vocab)
    assert (
        sum(piece.shape[1] for piece in vj.stream(params, batch, cfg=cfg, eos=every, max_new_tokens=64)) == 1
    )


def test_sampling_depends_on_the_seed_alone(params, cfg, batch, monkeypatch):
    def answer(batch, **settings):
        return vj.generate(params, batch, cfg=cfg, max_new_tokens=12, eos=(), **settings).tokens

    warm = answer(batch, temperature=1.5, seed=1)
    np.testing.assert_array_equal(warm, answer(batch, temperature=1.5, seed=1))
    np.testing.assert_array_equal(warm[:1], answer(alone(batch, 0), temperature=1.5, seed=1))
    assert (warm != answer(batch, temperature=1.5, seed=2)).any()
    assert (answer(batch, temperature=1.5) != answer(batch, temperature=1.5)).any()
    np.testing.assert_array_equal(answer(batch, temperature=1.5, top_k=1, seed=1), answer(batch))
    mixed = answer(batch, temperature=[0, 1.5, 0], seed=1)
    np.testing.assert_array_equal(mixed[[0, 2]], answer(batch)[[0, 2]])
    np.testing.assert_array_equal(mixed[1], warm[1])
    monkeypatch.setattr(decoding, 'CHUNK', 5)
    np.testing.assert_array_equal(warm, answer(batch, temperature=1.5, seed=1))


def test_another_length_compiles_nothing(folder):
    model = vj.load(folder)

    def answer(question):
        batch = model.processor(question)
        vj.generate(model.params, batch, cfg=model.cfg, max_new_tokens=9)
        return batch.lengths[0]

    short = answer('Hi')
    compiled = decoding.start._cache_size(), decoding.advance._cache_size()
    assert answer('What is it?') > short
    assert (decoding.start._cache_size(), decoding.advance._cache_size()) == compiled
    answer('What is it? ' * 20)  # the next bucket
    assert decoding.start._cache_size() == compiled[0] + 1


@pytest.mark.parametrize('settings', [{}, {'temperature': 1.0, 'seed': 0, 'eos': (3, 5)}])
def test_what_is_compiled_for_shapes_is_what_runs(params, cfg, batch, settings):
    compiled = []

    def listen(event, seconds, fun_name='', **_):
        if event.endswith('backend_compile_duration') and ('start' in fun_name or 'advance' in fun_name):
            compiled.append(fun_name)

    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), params)
    params = jax.device_put(params, where)
    settings = dict(settings, cfg=cfg, max_new_tokens=150)  # a number of slots that no other test uses
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        decoding.compile_for(shapes, batch, **settings)
        assert len(compiled) == 2
        vj.generate(params, batch, **settings)
        assert len(compiled) == 2
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_bad_settings_are_named_before_anything_runs(params, cfg, batch, monkeypatch):
    monkeypatch.setattr(decoding, 'start', None)
    for settings, message in [
        (dict(max_new_tokens=0), 'max_new_tokens is 0'),
        (dict(temperature=-1.0), 'temperature is -1'),
        (dict(temperature=float('nan')), 'temperature is nan'),
        (dict(top_k=-2), 'top_k is -2'),
        (dict(top_p=0.0), 'top_p is 0'),
        (dict(top_p=[1, 1.5, 1]), r'top_p is 1\.5'),
        (dict(temperature=[1, 2]), r'temperature has the shape \(2,\): give one number, or 3'),
        (dict(max_new_tokens=2.5), 'max_new_tokens is 2.5'),
        (dict(top_k=2.7), 'top_k is 2.7'),
        (dict(max_new_tokens=500), 'exceed the 512 of the model: ask for at most 492 new'),
    ]:
        with pytest.raises(ValueError, match=message):
            vj.stream(params, batch, cfg=cfg, **settings)
    with pytest.raises(ValueError, match='row 0 has 8 .* needs 4 for its 1 × 4'):
        vj.stream(params, batch._replace(image_counts=np.array([1, 0, 1])), cfg=cfg)


def test_without_a_limit_the_context_is_the_limit(params, cfg, batch):
    assert decoding.room(batch, cfg, None) == cfg.text.context - batch.lengths.max()


def test_half_precision_keeps_its_dtype(cfg, batch):
    params = vj.abstract(cfg, jnp.bfloat16)
    state = jax.eval_shape(partial(decoding.start, cfg=cfg, slots=64), params, batch, None)
    state, _ = jax.eval_shape(partial(decoding.advance, cfg=cfg, steps=2), params, state)
    assert {x.dtype for x in (*state.cache.k, *state.cache.v)} == {jnp.dtype(jnp.bfloat16)}


def test_answers_do_not_depend_on_layouts(params, cfg, batch):
    plain = vj.generate(params, batch, cfg=cfg, max_new_tokens=12, eos=()).tokens
    wanted = placement.formats(params['llama'], cfg)
    turned = jax.tree.map(
        lambda w: Format(Layout(tuple(reversed(range(w.ndim)))), w.sharding), params['llama']
    )
    for formats in (wanted, turned):
        llama = jax.device_put(params['llama'], formats)
        assert jax.tree.map(lambda w: w.format.layout.major_to_minor, llama) == jax.tree.map(
            lambda f: f.layout.major_to_minor, formats
        )
        answer = vj.generate({**params, 'llama': llama}, batch, cfg=cfg, max_new_tokens=12, eos=()).tokens
        np.testing.assert_array_equal(answer, plain)
