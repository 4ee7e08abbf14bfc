"""The text of an answer is the same however its ids arrive, and equals that of the whole."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vipllava_jax import GenerationSettings
from vipllava_jax.answering.answer_text import AnswerText, VisibleText
from vipllava_jax.generation.result import Generation
from vipllava_jax.generation.stopping import AnswerEnds, RowStops

EOS = (2, 301)  # 301 is an ordinary token, which a text does not leave out by itself
STOPS = ('###', 'e', ' \n', '\n', 'th', 'the', 'is w')


@st.composite
def pushes(draw):
    """Ids of an answer, of which many are bytes and white space, and where they are split."""
    ids = draw(
        st.lists(st.one_of(st.integers(2, 399), st.sampled_from([13, 35, 261, 290, 301])), max_size=30)
    )
    cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    bounds = [0, *cuts, len(ids)]
    return ids, [ids[a:b] for a, b in itertools.pairwise(bounds)]


def text_of(processor, chosen, parts):
    text = AnswerText(processor, EOS, chosen)
    return ''.join([*map(text.push, parts), text.end()])


def kept(processor, chosen, ids):
    """The ids up to the end of an answer, which are those that are turned into text."""
    stops = [RowStops(processor, chosen.stop)] if chosen.stop else []
    ends = AnswerEnds([len(ids) + 1], EOS, 0, stops)
    return ids[: ends.push_row(0, ids)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pushes(), st.lists(st.sampled_from(STOPS), max_size=3), st.booleans())
def test_the_split_of_the_ids_does_not_change_the_text(processor, pushed, stops, keep_stop):
    ids, parts = pushed
    chosen = GenerationSettings(stop=stops, keep_stop=keep_stop)
    assert text_of(processor, chosen, parts) == text_of(processor, chosen, [ids])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pushes(), st.lists(st.sampled_from(STOPS), max_size=3), st.booleans())
def test_the_text_is_that_of_a_generation(processor, pushed, stops, keep_stop):
    chosen = GenerationSettings(stop=stops, keep_stop=keep_stop)
    ids = kept(processor, chosen, pushed[0])
    empty = dict.fromkeys([field.name for field in dataclasses.fields(Generation)])
    whole = Generation(**{**empty, 'stop': chosen.stop, 'keep_stop': keep_stop})
    decoded = processor.tokenizer.decode_untrimmed([id for id in ids if id not in EOS])
    assert text_of(processor, chosen, [ids]) == whole.truncate(decoded)


@pytest.mark.parametrize(
    ('pieces', 'plain', 'with_stop'),
    [
        (['a', ' ', '\n', 'b  #c'], ['a', '', '', ' \nb', ''], ['a', '', '', ' \nb', '  #']),
        (['a ', '#'], ['a', '', ''], ['a', '', ' #']),
        (['a ', 'b'], ['a', ' b', ''], ['a', ' b', '']),
        (['a b '], ['a b', ''], ['a b', '']),
    ],
)
def test_white_space_is_held_back_until_text_follows(pieces, plain, with_stop):
    for keep_stop, expected in ((False, plain), (True, with_stop)):
        text = VisibleText(GenerationSettings(stop='#', keep_stop=keep_stop))
        assert [*map(text.push, pieces), text.end()] == expected
        assert text.stopped == ('#' in ''.join(pieces))


def test_white_space_at_the_start_is_left_out(processor):
    pieces = iter(['  \n', ' a', ' b'])
    stream = SimpleNamespace(push=lambda ids: next(pieces), end=lambda: '', blank='')
    text = AnswerText(SimpleNamespace(text_stream=lambda: stream), EOS, GenerationSettings())
    assert [text.push([7]), text.push([8]), text.push([9]), text.end()] == ['', 'a', ' b', '']


@pytest.mark.parametrize('keep_stop', [False, True])
def test_white_space_at_the_end_may_be_a_stop_string(processor, keep_stop):
    chosen = GenerationSettings(stop='\n', keep_stop=keep_stop)
    newline = processor.tokenizer.token_to_id('<0x0A>')
    assert text_of(processor, chosen, [[300, newline]]) == 'J' + '\n' * keep_stop
