"""Boxes, points, polygons and other fields of a mark are checked, with errors of one line."""

import decimal
import fractions
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.makers import noise
from vipllava_jax.inputs.coordinates import MAX_CORNERS
from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.marks import Mark, draw

BOX = (1, 2, 30, 40)
GIANT = pytest.param(10**400, id='400 digits')
GIANTER = pytest.param(10**5000, id='5000 digits')
NO_NUMBERS = [
    '1',
    b'1',
    None,
    True,
    False,
    [1],
    {},
    object(),
    1j,
    np.str_('1'),
    np.bool_(True),
    GIANT,
    GIANTER,
]
NO_SEQUENCES = [
    '1239',
    b'1239',
    {1: 2, 3: 4, 5: 6, 7: 8},
    {1, 2, 30, 40},
    7,
    None.__class__,
    itertools.count(),
    iter(BOX),
]


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def check_refused(**arguments) -> str:
    with pytest.raises(ValueError, match='.') as caught:
        Mark(**{'shape': 'arrow', **arguments})
    message = str(caught.value)
    assert len(message) < 500
    assert message.isprintable()
    return message


@pytest.mark.parametrize('value', [*NO_NUMBERS, float('nan'), float('inf'), 1e300, np.float32('nan')])
def test_invalid_coordinates_are_refused(value):
    check_refused(box=(1, 2, 30, value))
    check_refused(point=(value, 1))
    check_refused(polygon=(1, 2, 30, 40, 1, value))
    check_refused(polygon=[(1, 2), (30, 40), (value, 5)])
    check_refused(polygon=[[(1, 2), (30, 40), (1, 50)], [(1, 2), (30, 40), (value, 5)]])


@pytest.mark.parametrize(
    'values', [*NO_SEQUENCES, deep(10), deep(5000), range(10**9), [BOX], np.zeros((4, 4)), np.array(5)]
)
def test_invalid_boxes_and_points_are_refused(values):
    check_refused(box=values)
    check_refused(point=values)


@pytest.mark.parametrize(
    'values', [*NO_SEQUENCES, deep(10), deep(5000), range(10**9), np.array(['1', '2']), [], [[]], [None]]
)
def test_invalid_polygons_are_refused(values):
    check_refused(polygon=values)
    check_refused(polygon=[values])
    check_refused(polygon=[[1, 2, 30, 2, 30, 40], values])


@pytest.mark.parametrize(
    'value',
    [
        'red ',
        'RED',
        '#12',
        '#1234567',
        'a' * 1_000_000,
        b'red',
        *NO_NUMBERS,
        (1, 2),
        (1, 2, 3, 4),
        {1, 2, 3},
        '123',
        (1, 2, '3'),
        (True, 1, 2),
        (0.5, 0.5, 0.5),
        (float('nan'), 0, 0),
        (0, 0, -1),
        (0, 0, 256),
        (None, 0, 0),
        deep(5000),
        (10**400, 0, 0),
    ],
)
def test_invalid_colors_are_refused(value):
    assert 'unknown color' in check_refused(box=BOX, color=value)


@pytest.mark.parametrize(
    'value', [*NO_NUMBERS[:2], *NO_NUMBERS[3:], 0, -1, 256, 1.5, 128.0, float('nan'), float('inf')]
)
def test_invalid_alphas_are_refused(value):
    assert 'alpha' in check_refused(box=BOX, alpha=value)


@pytest.mark.parametrize(
    'value',
    [*NO_NUMBERS[:2], *NO_NUMBERS[3:], 0, -1, float('nan'), float('inf'), -float('inf'), 0.0, -5e-324],
)
def test_invalid_widths_are_refused(value):
    assert 'width' in check_refused(box=BOX, width=value)


@pytest.mark.parametrize(
    'value', [None, 3, [], {}, 'Rectangle', 'a' * 1_000_000, '\x1b', '\ud800', deep(5000), ()]
)
def test_invalid_shapes_are_refused(value):
    assert 'unknown shape' in check_refused(shape=value, box=BOX)


@pytest.mark.parametrize('value', ['pixels', [], np.zeros(3), 3, {}, ''])
def test_invalid_units_are_refused(value):
    assert 'has units' in check_refused(box=BOX, units=value)


def test_a_mark_has_a_bounded_number_of_corners():
    many = [i * i % 1000 for i in range(2 * MAX_CORNERS + 2)]
    for polygon in (
        many,
        [many],
        [many[:100_000], many[:100_000], many[:100_002]],
        np.array(many),
        [many[:6]] * 1001,
    ):
        assert 'at most' in check_refused(polygon=polygon)
    assert len(Mark('mask', polygon=many[:-2]).polygon[0]) == MAX_CORNERS


def test_numbers_of_any_type_are_accepted():
    expected = Mark('rectangle', box=BOX, color=(1, 2, 3), alpha=9, width=2)
    conversions = [
        list,
        np.array,
        lambda v: np.array(v, np.float32),
        lambda v: np.array(v, np.uint8),
        lambda v: np.array(v, object),
    ]
    conversions += [
        lambda v: [np.float16(n) for n in v],
        lambda v: [fractions.Fraction(n) for n in v],
        lambda v: [decimal.Decimal(n) for n in v],
    ]
    conversions += [lambda v: range(v[0], v[0] + 3) if v == (1, 2, 3) else v]
    for convert in conversions:
        assert (
            Mark(
                'rectangle',
                box=convert(BOX),
                color=convert((1, 2, 3)),
                alpha=convert((9,))[0] if convert is np.array else 9,
                width=2,
            )
            == expected
        )
    assert Mark('rectangle', box=BOX, color=(1, 2, 3), alpha=np.uint8(9), width=np.float32(2)) == expected
    jnp = pytest.importorskip('jax.numpy')
    assert Mark('rectangle', box=jnp.array(BOX), color=jnp.array([1, 2, 3]), alpha=9, width=2) == expected


@pytest.mark.parametrize('several', [False, True])
def test_polygons_of_every_form_are_accepted(several):
    flat, pairs = [1, 2, 30, 2, 30, 40], [(1, 2), (30, 2), (30, 40)]
    forms = [
        flat,
        tuple(flat),
        np.array(flat),
        pairs,
        np.array(pairs),
        [list(pair) for pair in pairs],
        [np.array(p) for p in pairs],
    ]
    for form in forms:
        mark = Mark('mask', polygon=[form, form] if several else form)
        assert mark.polygon == (((1, 2), (30, 2), (30, 40)),) * (2 if several else 1)
    assert (
        Mark('mask', polygon=np.array([pairs, pairs])).polygon == Mark('mask', polygon=[flat, flat]).polygon
    )


@pytest.mark.parametrize(
    'text',
    [
        'a' * 1_000_000,
        ':' * 1_000_000,
        '+' * 1_000_000,
        ',' * 1_000_000,
        '/' * 1_000_000,
        '=' * 1_000_000,
        'mask:' + '1,' * 1_000_000,
        'rectangle:1,2,3,4:' + 'a' * 1_000_000,
        'rectangle:1,2,3,4:alpha=' + '9' * 5000,
        'rectangle:1,2,3,4:width=' + '9' * 5000,
        'rectangle:1,2,3,' + '9' * 5000,
        'rectangle:1,2,3,1e400',
        '9' * 5000 + '/point:1,1',
        '\u0661/point:1,1',
        '1_0/point:1,1',
        '+1/point:1,1',
        'point:\u0661,1',
        'point:1_0,1',
        'point:\ud800,1',
        'point:\x1b[2J,1',
        '\u202epoint:1,1',
        'rectangle:1,2,3,4:alpha=True',
        '0/point:1,1',
        'point:1,1\n:\x00',
        'point:0x10,1',
        'rectangle:1,2,3,4:width=nan',
        'point:1,1:red:alpha=1.5',
    ],
)
def test_invalid_mark_texts_give_short_errors(text):
    with pytest.raises(ValueError, match='^mark ') as caught:
        parse_mark(text)
    assert len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()


def test_only_strings_are_parsed():
    for value in (None, 3, b'point:1,1', ['point:1,1'], deep(5000)):
        with pytest.raises(ValueError, match='expected a mark as a string'):
            parse_mark(value)


def test_errors_of_drawing_are_short():
    outline = [(x, 10 + x % 2) for x in range(500)] + [(9000, 400)]
    with pytest.raises(ValueError, match='outside the picture') as caught:
        draw(noise(99, 99), Mark('mask', polygon=outline))
    assert len(str(caught.value)) < 500
    with pytest.raises(TypeError, match='expected a Mark') as type_caught:
        draw(noise(9, 9), [deep(5000)])
    assert len(str(type_caught.value)) < 500


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(
    shape=st.sampled_from(['mask', 'arrow']) | anything,
    box=anything,
    point=anything,
    polygon=anything,
    color=anything,
    alpha=anything,
    width=anything,
    units=anything,
)
def test_any_arguments_give_a_mark_or_a_short_error(shape, **arguments):
    for given_ in (
        {**arguments},
        {'box': BOX, **{k: v for k, v in arguments.items() if k != 'box'}},
        {'box': arguments['box']},
    ):
        try:
            mark = Mark(shape, **given_)
        except ValueError as error:
            assert len(str(error)) < 500 and str(error).isprintable()  # noqa: PT017, PT018
        else:
            assert re.match('[a-z-]+:', str(mark))
