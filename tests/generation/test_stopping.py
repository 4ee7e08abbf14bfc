"""A stop string ends the text, however the text is split into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax.generation.stopping import truncate_at_stops

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
