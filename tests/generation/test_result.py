"""The result of generation: one record per answer, a short repr, and texts without stop strings."""

import dataclasses

import numpy as np
import pytest

import vipllava_jax as vj
from vipllava_jax.generation.result import Generation


@pytest.fixture
def out():
    tokens = np.array([[5, 6, 2, 0], [7, 8, 9, 10]], np.int32)
    return Generation(tokens, np.array([3, 4]), np.array([True, False]), ('stop', 'length'))


@pytest.fixture(scope='module')
def model(folder):
    return vj.load(folder)


@pytest.fixture
def reported(out):
    return dataclasses.replace(
        out,
        stop=('#',),
        logprobs=np.float32([[-1, -2, -3, 0], [-4, -4, -4, -4]]),
        top_ids=np.zeros((2, 4, 2), np.int32),
        top_logprobs=np.zeros((2, 4, 2), np.float32),
        sequence_scores=np.float32([0.25, 0.5]),
    )


def test_iterating_yields_one_record_per_answer(out):
    first, second = out
    assert (first.tokens.tolist(), first.finished, first.finish_reason) == ([5, 6, 2], True, 'stop')
    assert (second.tokens.tolist(), second.finished, second.finish_reason) == ([7, 8, 9, 10], False, 'length')
    assert len(out) == 2


def test_answers_are_selected_by_index_and_slice(reported):
    assert reported[1].tokens.tolist() == reported[-1].tokens.tolist() == [7, 8, 9, 10]
    first = reported[0]
    assert first.logprobs.tolist() == [-1, -2, -3]
    assert first.top_ids.shape == first.top_logprobs.shape == (3, 2)
    assert (first.scores, first.sequence_score) == (None, 0.25)
    part = reported[1:]
    assert (len(part), part.finish_reasons, part.stop) == (1, ('length',), ('#',))
    assert [part.tokens.shape, part.top_ids.shape] == [(1, 4), (1, 4, 2)]
    assert part.sequence_scores.tolist() == [0.5]
    for index in (2, -3):
        with pytest.raises(IndexError, match=f'there is no answer {index}: there are 2'):
            reported[index]


@pytest.mark.parametrize('index', ['a', 1.0, None, [0, 1], np.array([True, False]), (0, 1)])
def test_an_index_is_a_whole_number_or_a_slice(out, index):
    with pytest.raises(TypeError, match='an index is .*, but must be a whole number or a slice'):
        out[index]
    assert out[np.int64(1)].finish_reason == 'length'


def test_one_answer_is_not_decoded_without_the_stop_strings(model, out):
    with pytest.raises(TypeError, match=r'one answer of a Generation.* such as out\[2:3\]'):
        model.processor.decode(out[0])
    assert model.processor.decode(out[1:2]) == model.processor.decode(out)[1:]


def test_the_repr_shows_shapes_and_no_tokens(out):
    assert repr(out) == 'Generation(tokens=int32[2,4], lengths=int64[2], finished=1 of 2)'
    html = out._repr_html_()
    assert '<td>0</td><td>3</td><td>stop</td>' in html
    assert '<td>1</td><td>4</td><td>length</td>' in html
    many = Generation(np.zeros((99, 4)), np.full(99, 4), np.zeros(99, bool), ('length',) * 99)
    assert 'and 83 more answers' in many._repr_html_()
    assert len(many._repr_html_()) < 2000


def test_a_notebook_shows_the_mean_log_probability_and_the_score(reported):
    html = reported._repr_html_()
    assert '<th>finish reason</th><th>mean log-probability</th><th>score</th>' in html
    assert '<td>0</td><td>3</td><td>stop</td><td>-2.000</td><td>0.250</td>' in html
    assert '<td>1</td><td>4</td><td>length</td><td>-4.000</td><td>0.500</td>' in html
    for partial in (reported, dataclasses.replace(reported, lengths=np.zeros(2, int))):
        assert 'nan' not in partial._repr_html_()


def test_a_generation_is_frozen(out):
    with pytest.raises(dataclasses.FrozenInstanceError):
        out.tokens = None


def test_texts_end_at_the_first_stop_string(out):
    def text(full_text, stop, keep_stop=False):
        return dataclasses.replace(out, stop=stop, keep_stop=keep_stop).truncate(full_text)

    assert text(' A dog. ', ()) == 'A dog.'
    assert text(' A dog. ###Human', ('###',)) == 'A dog.'
    assert text(' A dog. ###Human', ('###',), keep_stop=True) == 'A dog. ###'
    assert text('A\n\nB', ('\n\n',)) == 'A'
    assert text('A\n\nB', ('\n\n',), keep_stop=True) == 'A\n\n'
    assert text(' A dog. ', ('###',), keep_stop=True) == 'A dog.'
    assert text('abcd', ('abcd', 'bc')) == 'a'  # the stop string that is complete first
    assert text('abcd', ('c', 'bc')) == 'a'


def test_a_generation_consists_of_numpy_arrays(params, cfg, rng):
    from tests.rows import ragged

    out = vj.generate(params, ragged(cfg, rng, [(4, 0), (5, 0)]), cfg=cfg, max_new_tokens=3, eos=())
    for array in (out.tokens, out.lengths, out.finished):
        assert type(array) is np.ndarray
    assert out.tokens.dtype == np.int32
    assert out.finished.dtype == bool
