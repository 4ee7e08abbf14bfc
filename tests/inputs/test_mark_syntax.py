"""Marks written as text."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS, Mark

BOX = (40, 60, 180, 220)
DIAMOND = (110, 60, 180, 140, 110, 220, 40, 140)


def test_mark_texts_are_parsed():
    assert parse_mark('rectangle:40,60,180,220:red') == (0, Mark('rectangle', box=BOX))
    assert parse_mark('2/mask-contour:40,60,180,60,180,220:blue:alpha=200:width=3') == (
        1,
        Mark('mask contour', polygon=(40, 60, 180, 60, 180, 220), color='blue', alpha=200, width=3),
    )
    assert parse_mark('mask contour: 1, 2, 30, 40')[1].phrase == 'with the red mask contour'
    assert parse_mark('point:.5,.25:#ff8000') == (0, Mark('point', point=(0.5, 0.25), color=(255, 128, 0)))
    assert parse_mark('arrow:40,60,180,220+90,90:gold')[1] == Mark(
        'arrow', box=BOX, point=(90, 90), color='gold'
    )


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'write SHAPE:X1,Y1,X2,Y2'),
        ('rectangle', 'write SHAPE:X1,Y1,X2,Y2'),
        ('rectangle:', 'expected numbers'),
        ('rectangle:1,2,x,4', 'expected numbers'),
        ('rectangle:1,2,3:red', "'1,2,3' has 3 numbers: a point has two, a box four"),
        ('circle:1,2,3,4', "unknown shape 'circle'"),
        ('rectangle:1,2,3,4:pink', "unknown color 'pink'"),
        ('rectangle:1,2,3,4:#12345g', 'unknown color'),
        ('rectangle:1,2,3,4:red:blue', "unexpected 'blue'"),
        ('rectangle:1,2,3,4:red:size=3', "unexpected 'size=3'"),
        ('rectangle:1,2,3,4:red:alpha=x', "alpha must be a number, found 'x'"),
        ('rectangle:1,2,3,4+5,6,7,8', 'found a second box'),
        ('0/rectangle:1,2,3,4', 'the number of an image, from 1, before'),
        ('a/rectangle:1,2,3,4', 'the number of an image, from 1, before'),
        ('rectangle:nan,2,3,4', 'must be finite'),
        ('rectangle:1,2', 'rectangle needs a box'),
    ],
)
def test_an_invalid_mark_text_is_quoted(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_mark(text)
    assert str(caught.value).startswith(f'mark {text!r}: ')
    assert '\n' not in str(caught.value)


numbers = st.floats(0, 2000, width=32).map(lambda number: round(number, 3))


@given(
    shape=st.sampled_from(sorted(PREPOSITIONS)),
    box=st.tuples(numbers, numbers, st.floats(1, 500), st.floats(1, 500)).map(
        lambda b: (*b[:2], b[0] + b[2], b[1] + b[3])
    ),
    polygon=st.none() | st.just(DIAMOND) | st.just([DIAMOND, (0, 0, 9.5, 0, 0, 9.25)]),
    point=st.none() | st.tuples(numbers, numbers),
    color=st.sampled_from(sorted(COLORS)) | st.tuples(*[st.integers(0, 255)] * 3),
    alpha=st.none() | st.integers(1, 255),
    units=st.sampled_from([None, 'pixel', 'relative']),
)
def test_writing_and_parsing_are_inverse(shape, box, polygon, point, color, alpha, units):
    mark = Mark(shape, box=box, polygon=polygon, point=point, color=color, alpha=alpha, units=units)
    assert parse_mark(f'3/{mark}') == (2, mark)


@given(st.text(alphabet='rectanglmsk:0123456789,./+-=#x\n', max_size=40))
def test_any_text_is_a_mark_or_a_value_error(text):
    with contextlib.suppress(ValueError):
        assert isinstance(parse_mark(text)[1], Mark)
