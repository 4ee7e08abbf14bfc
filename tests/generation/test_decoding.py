"""Answers are those of forward, whatever the other rows are, and end as each row's settings say."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout

import vipllava_jax as vj
from scripts.demo import exam
from tests.rows import alone, ragged
from vipllava_jax import placement
from vipllava_jax.generation import decoding, rows
from vipllava_jax.generation.plan import max_new_tokens_for

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


def test_an_answer_ends_when_its_time_is_over(params, cfg, batch, monkeypatch):
    seconds = iter(range(100))
    monkeypatch.setattr(rows, 'time', SimpleNamespace(monotonic=lambda: next(seconds)))
    out = vj.generate(params, batch, cfg=cfg, max_new_tokens=[20, 20, 9], eos=(), max_time=[0.5, 2.5, 2])
    assert out.lengths.tolist() == [1, 17, 9]
    assert out.finish_reasons == ('time', 'time', 'length')
    assert not out.finished.any()


def test_a_stream_tells_its_answers_at_any_time(params, cfg, batch):
    stream = vj.stream(params, batch, cfg=cfg, max_new_tokens=[20, 1, 20], eos=(), logprobs=3)
    empty = stream.generation()
    assert (empty.tokens.shape, empty.top_ids.shape, empty.finish_reasons) == ((3, 0), (3, 0, 3), ('',) * 3)
    assert 'nan' not in empty._repr_html_()
    next(stream)
    assert stream.generation().finish_reasons == ('', 'length', '')
    next(stream)
    out = stream.generation()
    assert out.lengths.tolist() == [9, 1, 9]
    assert out.logprobs.shape == (3, 9)
    for answer, n in zip(out, (9, 1, 9), strict=True):
        assert len(answer.tokens) == len(answer.logprobs) == len(answer.top_ids) == n


@pytest.mark.slow
def test_other_rows_do_not_change_an_answer(demo_model):
    """Four questions about pictures and one without, in a batch together and in batches of copies."""
    examples = [
        next(exam.of_type(type, 1)).example for type in ('kind', 'list', 'words', 'relation', 'describe')
    ]
    questions = [example.turns[0].text for example in examples]
    pictures = [[picture] if (picture := example.picture()) else [] for example in examples]

    def answers(rows):
        batch = demo_model.processor([questions[row] for row in rows], [pictures[row] for row in rows])
        return demo_model.processor.decode(
            vj.generate(demo_model.params, batch, cfg=demo_model.cfg, max_new_tokens=64)
        )

    together = answers(range(5))
    assert [*map(len, pictures)] == [1, 1, 0, 1, 1]
    assert len({*together}) == 5
    assert together == [answers([row] * 5)[0] for row in range(5)]


def test_end_ids_may_be_numbers_lists_or_arrays(params, cfg, batch):
    answers = [
        vj.generate(params, batch, cfg=cfg, max_new_tokens=4, eos=eos).tokens.tolist()
        for eos in (7, [7], (7,), np.array([7]), jnp.array(7), np.int64(7))
    ]
    assert all(answer == answers[0] for answer in answers)


def test_a_stream_ends_when_every_row_has_ended(params, cfg, batch):
    every = range(cfg.text.vocab)
    assert (
        sum(piece.shape[1] for piece in vj.stream(params, batch, cfg=cfg, eos=every, max_new_tokens=64)) == 1
    )


def test_invalid_settings_are_named_before_anything_runs(params, cfg, batch, monkeypatch):
    monkeypatch.setattr(decoding, 'prefill_batch', None)
    for settings, message in [
        (dict(max_new_tokens=0), 'max_new_tokens is 0'),
        (dict(temperature=-1.0), 'temperature is -1'),
        (dict(temperature=float('nan')), 'temperature is nan'),
        (dict(top_k=-2), 'top_k is -2'),
        (dict(top_p=0.0), 'top_p is 0'),
        (dict(top_p=[1, 1.5, 1]), r'top_p is 1\.5'),
        (dict(temperature=[1, 2]), r'temperature has the shape \(2,\): give one number, or 3'),
        (dict(seed=[1, 2], temperature=1), r'seed has the shape \(2,\): give one number, or 3'),
        (dict(max_new_tokens=[5, 6]), r'max_new_tokens has the shape \(2,\)'),
        (
            dict(max_new_tokens=[500, 495, 20]),
            'row 0: a prompt of 18 tokens and 500 new ones exceed the context of 512',
        ),
        (dict(stop='.'), 'stop needs processor='),
        (dict(max_new_tokens=2.5), 'max_new_tokens is 2.5'),
        (dict(top_k=2.7), 'top_k is 2.7'),
        (dict(max_new_tokens=500), 'exceed the context of 512: request at most 492 new tokens'),
    ]:
        with pytest.raises(ValueError, match=message):
            vj.stream(params, batch, cfg=cfg, **settings)
    with pytest.raises(ValueError, match='row 0 has 8 .* needs 4 for its 1 × 4'):
        vj.stream(params, batch._replace(image_counts=np.array([1, 0, 1])), cfg=cfg)


def test_without_a_limit_the_context_is_the_limit(params, cfg, batch):
    assert (max_new_tokens_for(batch, cfg, None) == cfg.text.context - batch.lengths.max()).all()


@pytest.mark.slow
def test_answers_do_not_depend_on_layouts(params, cfg, batch):
    plain = vj.generate(params, batch, cfg=cfg, max_new_tokens=12, eos=()).tokens
    preferred = placement.formats(params['llama'], cfg)
    transposed = jax.tree.map(
        lambda w: Format(Layout(tuple(reversed(range(w.ndim)))), w.sharding), params['llama']
    )
    for formats in (preferred, transposed):
        llama = jax.device_put(params['llama'], formats)
        assert jax.tree.map(lambda w: w.format.layout.major_to_minor, llama) == jax.tree.map(
            lambda f: f.layout.major_to_minor, formats
        )
        answer = vj.generate({**params, 'llama': llama}, batch, cfg=cfg, max_new_tokens=12, eos=()).tokens
        np.testing.assert_array_equal(answer, plain)


def test_each_row_may_have_its_own_limit(params, cfg, batch, greedy):
    out = vj.generate(params, batch, cfg=cfg, max_new_tokens=[1, 20, 9], eos=())
    np.testing.assert_array_equal(out.lengths, [1, 20, 9])
    assert out.finish_reasons == ('length',) * 3
    for row, n in enumerate(out.lengths):
        np.testing.assert_array_equal(out.tokens[row, :n], greedy[row, :n])
        assert (out.tokens[row, n:] == cfg.pad).all()


def test_settings_are_overridden_by_keywords(params, cfg, batch):
    settings = vj.GenerationSettings(max_new_tokens=5, eos=())
    assert (vj.generate(params, batch, cfg=cfg, settings=settings).lengths == 5).all()
    assert (vj.generate(params, batch, cfg=cfg, settings=settings, max_new_tokens=3).lengths == 3).all()
    for call in (vj.generate, vj.stream, decoding.compile_for):
        with pytest.raises(TypeError, match='top_x is not a setting: did you mean top_'):
            call(params, batch, cfg=cfg, settings=settings, top_x=0.1)
        with pytest.raises(TypeError, match='settings is .* must be a GenerationSettings'):
            call(params, batch, cfg=cfg, settings={'max_new_tokens': 5})


def test_other_settings_compile_nothing(params, cfg, batch):
    def run(**settings):
        vj.generate(params, batch, cfg=cfg, max_new_tokens=9, **settings)
        return decoding.prefill_batch._cache_size(), decoding.decode_chunk._cache_size()

    compiled = run(eos=3)
    for eos in ((), 4, [5, 6], range(8)):
        assert run(eos=eos) == compiled
    sampled = run(temperature=1.0, seed=0)
    for settings in ({'seed': 5}, {'seed': [1, 2, 3]}, {'top_k': 4, 'top_p': [1, 0.5, 1]}, {'eos': [5, 6]}):
        assert run(**{'temperature': [0, 1, 2], **settings}) == sampled


@pytest.mark.parametrize('run', [vj.generate, vj.stream])
def test_a_model_or_a_prompt_as_an_argument_is_an_error_that_says_what_to_pass(demo_model, batch, run):
    with pytest.raises(TypeError, match=r'params is a Model: pass model\.params'):
        run(demo_model, batch, cfg=demo_model.cfg)
    with pytest.raises(TypeError, match=r"batch is 'What\?', expected a Batch, as model\.processor returns"):
        run(demo_model.params, 'What?', cfg=demo_model.cfg)
