"""A stop string ends the text, however the text is split into pieces."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import vipllava_jax as vj
from vipllava_jax.generation.stopping import AnswerEnds, find_stop, stop_conditions, truncate_at_stops

texts = st.text('ab#', max_size=20)


@given(st.lists(texts), st.lists(st.text('ab#', min_size=1, max_size=4), max_size=3))
def test_pieces_make_the_text_before_the_first_stop(pieces, stops):
    whole = ''.join(pieces)
    ends = [whole.find(stop) for stop in stops if stop in whole]
    got = ''.join(truncate_at_stops(pieces, stops))
    if not ends:
        assert got == whole
    else:  # pieces may complete a later stop before an earlier, longer one
        assert whole.startswith(got)
        assert not any(stop in got for stop in stops)
        assert any(whole[len(got) :].startswith(stop) for stop in stops)


def test_text_that_cannot_be_a_stop_comes_at_once():
    seen = truncate_at_stops(iter(['one #', ' two ##', '#', ' never']), ['###'])
    assert [*seen] == ['one ', '# two ', '']
    assert [*truncate_at_stops(['a', 'b'], [])] == ['a', 'b']


def test_nothing_is_read_past_the_stop():
    def endless():
        yield 'a###'
        raise AssertionError('read on')

    assert [*truncate_at_stops(endless(), ['###'])] == ['a']


@given(st.lists(texts), st.lists(st.text('ab#', min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_text_does_not_depend_on_the_pieces(pieces, stops):
    whole = ''.join(pieces)
    found = find_stop(whole, stops)
    expected = whole if found is None else whole[: found[0]]
    assert ''.join(truncate_at_stops(pieces, stops)) == expected
    assert ''.join(truncate_at_stops(whole, stops)) == expected
    if found:
        assert whole[slice(*found)] in stops
        assert not any(stop in whole[: found[1] - 1] for stop in stops)


def test_answers_end_with_an_end_id_or_at_their_limit():
    ends = AnswerEnds(np.array([3, 6, 9]), eos=[2], pad=0)
    tokens = np.array([[7, 7, 7, 7], [7, 2, 7, 7], [7, 7, 7, 7]])
    np.testing.assert_array_equal(ends.push(tokens), [[7, 7, 7, 0], [7, 2, 0, 0], [7, 7, 7, 7]])
    assert not ends.all_ended
    np.testing.assert_array_equal(ends.push(tokens[:, :2])[:, 0], [0, 0, 7])
    np.testing.assert_array_equal(ends.push(tokens), [[0] * 4, [0] * 4, [7, 7, 7, 0]])
    assert ends.all_ended
    assert ends.lengths.tolist() == [3, 2, 9]
    assert ends.reasons == ['length', 'stop', 'length']


def test_an_end_id_at_the_limit_is_a_stop():
    ends = AnswerEnds(np.array([2]), eos=[2], pad=0)
    ends.push(np.array([[7, 2, 7]]))
    assert (ends.lengths.tolist(), ends.reasons) == ([2], ['stop'])


def test_a_template_has_stop_strings_and_stop_ids(folder):
    model = vj.load(folder)
    assert stop_conditions(model.processor, 'vipllava', model.cfg) == ((), model.cfg.eos)
    stops, ids = stop_conditions(model.processor, 'hub', model.cfg)
    assert stops == ('###',)
    assert ids[: len(model.cfg.eos)] == model.cfg.eos
