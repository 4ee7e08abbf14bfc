"""Marks of a row differ in style and phrases, and rounding never moves them outside the picture."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vipllava_jax.data.marking import (
    ImageObject,
    bounds,
    choose_styles,
    clamp_mark,
    in_pixels,
    mark_phrase,
    read_objects,
    replace_box_tags,
    text_field,
)
from vipllava_jax.inputs.marks import COLORS, Mark, draw


@given(st.integers(0, 12), st.integers(0, 1000))
def test_marks_of_the_same_shape_have_different_named_colours(count, seed):
    styles = choose_styles(count, np.random.default_rng(seed), ('rectangle', 'ellipse'))
    assert len(styles) == count
    names = [color for _, color in styles if isinstance(color, str)]
    assert len(set(names)) == len(names)
    shapes = [shape for shape, _ in styles]
    needed = sum(shapes.count(shape) > 1 for shape in shapes)
    assert len(names) >= min(needed, len(COLORS))


def test_a_single_shape_has_a_named_colour_half_of_the_time():
    styles = [choose_styles(1, np.random.default_rng(seed))[0] for seed in range(400)]
    assert 150 < sum(isinstance(color, str) for _, color in styles) < 250


def test_styles_are_fixed_without_a_generator():
    assert choose_styles(2, None) == [('rectangle', 'red'), ('rectangle', 'lime')]
    assert choose_styles(10, None)[9] == ('rectangle', 'red')


@given(st.tuples(*[st.floats(-1, 1)] * 4))
def test_boxes_outside_by_rounding_are_moved_inside(offsets):
    box = [c + d for c, d in zip((0, 0, 40, 30), offsets, strict=True)]
    outline = [box[0], box[1], box[2], box[1], box[2], box[3]]
    for item in (ImageObject(box), ImageObject(box, (outline,))):
        mark = clamp_mark(item.mark('rectangle', 'red'), (40, 30))
        assert all(0 <= c <= limit for c, limit in zip(mark.box, (40, 30) * 2, strict=True))
        assert all(abs(c - d) <= 1 for c, d in zip(mark.box, box, strict=True))
        draw(Image.new('RGB', (40, 30)), mark)


@pytest.mark.parametrize('box', [[-1.5, 0, 9, 9], [0, 0, 41.5, 9], [0, 0, 9, 31.5], [39.9, 0, 40.5, 9]])
def test_boxes_further_outside_are_errors(box):
    with pytest.raises(ValueError, match='outside the picture|less than a pixel'):
        clamp_mark(ImageObject(box).mark('rectangle', 'red'), (40, 30))


def test_an_exact_mark_is_not_moved():
    mark = Mark('rectangle', box=(0, 0, 40.5, 30), units=None)
    with pytest.raises(ValueError, match='outside the picture'):
        clamp_mark(mark, (40, 30))
    fractions = Mark('arrow', point=(0.5, 1))
    assert clamp_mark(fractions, (40, 30)) is fractions


def test_tags_become_phrases():
    assert replace_box_tags('a <bbox1> b <bbox> c <bboxes>', ['x', 'y'], 'it') == 'a y b x c <bboxes>'
    with pytest.raises(ValueError, match=r'it says <bbox2>, but the row has 2 mark\(s\)'):
        replace_box_tags('<bbox2>', ['x', 'y'], 'it')
    mark = Mark('arrow', point=(1, 1), color='blue')
    assert mark_phrase(mark, None) == 'pointed to by the blue arrow'
    phrases = {mark_phrase(mark, np.random.default_rng(seed)) for seed in range(20)}
    assert phrases == {'pointed to by the blue arrow', 'pointed to by blue arrow'}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'bboxes': '1239'}, '"bboxes" is \'1239\': expected a list of boxes'),
        ({'bboxes': ['1239']}, '"bboxes"[0]: expected numbers, found \'1239\''),
        ({'bboxes': [[1, 2, 30, 40], list('1239')]}, '"bboxes"[1]: expected numbers, found \'1\''),
        ({'bboxes': [[1, 2, 3, None]]}, '"bboxes"[0]: expected numbers, found None'),
        ({'bboxes': [[True, 2, 3, 4]]}, '"bboxes"[0]: expected numbers, found True'),
        ({'bboxes': [[1, 2, 3, 10**400]]}, '"bboxes"[0]: coordinates must be finite'),
        ({'bboxes': [[1, 2, 3, float('nan')]]}, '"bboxes"[0]: coordinates must be finite'),
        ({'bboxes': [{'x': 1}]}, '"bboxes"[0]: expected numbers'),
        ({'bboxes': [[[1, 2], [3, 4]]]}, '"bboxes"[0]: found 2 numbers'),
        ({'bboxes': {'0': [1, 2, 3, 4]}}, '"bboxes" is {'),
        ({'bboxes': False}, '"bboxes" is False'),
        ({'segmentations': 'abc'}, 'expected a list with one entry'),
        ({'segmentations': [None, None]}, 'expected a list with one entry'),
        ({'segmentations': ['1239']}, '"segmentations"[0]: expected a list of polygons'),
        ({'segmentations': [3]}, '"segmentations"[0]: expected a list of polygons, found 3'),
        ({'segmentations': [['123456']]}, '"segmentations"[0]: expected a polygon'),
        ({'segmentations': [[[1, 2, '3', 4, 5, 6]]]}, '"segmentations"[0]: expected numbers, found \'3\''),
        ({'segmentations': [[[1, 2, None, 4, 5, 6]]]}, '"segmentations"[0]: expected numbers, found None'),
        ({'segmentations': [[[1, 2, 1e300, 4, 5, 6]]]}, '"segmentations"[0]: coordinates must be finite'),
        ({'segmentations': [{'counts': 'x'}]}, '"segmentations"[0]: a segmentation is run-length encoded'),
        ({'segmentations': [[[[[1]]]]]}, '"segmentations"[0]: expected numbers, found [1]'),
    ],
)
def test_an_invalid_box_or_polygon_is_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_objects({'bboxes': [[1, 2, 30, 40]], **changes})

    assert len(str(caught.value)) < 500


def test_polygons_without_an_area_are_ignored():
    square = [1, 1, 9, 1, 9, 9]
    for outline in (
        [square],
        [[[1, 1], [9, 1], [9, 9]]],
        [square, [1, 2], [], [1, 1, 5, 5, 9, 9], [1, 1, 9, 1]],
    ):
        (item,) = read_objects({'bboxes': [[0, 0, 10, 10]], 'segmentations': [outline]})
        assert item.polygons == ([1, 1, 9, 1, 9, 9],)
    assert read_objects({'bboxes': [[0, 0, 10, 10]], 'segmentations': [[]]})[0].polygons == ()
    assert read_objects({}) == read_objects({'bboxes': None}) == read_objects({'bboxes': []}) == []


@pytest.mark.parametrize(
    'value', [3, None, '', [], {'a': [1]}, [[[[]]]], pytest.param(10**5000, id='5001 digits')]
)
def test_a_field_without_text_is_an_error(value):
    with pytest.raises(ValueError, match=r'"answer" is .*: expected a string') as caught:
        text_field({'answer': value}, 'answer')
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize('tag', ['<bbox' + '9' * 5000 + '>', '<bbox9999999999>'])
def test_a_tag_number_beyond_the_marks_is_an_error(tag):
    with pytest.raises(ValueError, match='but the row has 1 mark') as caught:
        replace_box_tags(tag, ['x'], 'it')
    assert len(str(caught.value)) < 200
    assert replace_box_tags('<bbox\u0661> <bbox00>', ['x'], 'it') == '<bbox\u0661> x'


@pytest.mark.parametrize(
    ('place', 'expected', 'around'),
    [
        ({'box': (10.1, 6, 40, 15)}, {'box': (10.1, 6, 40, 15)}, (10.1, 6, 40, 15)),
        ({'box': (0.25, 0.2, 1, 0.5)}, {'box': (10, 6, 40, 15)}, (10, 6, 40, 15)),
        ({'box': (0, 0, 1, 1), 'units': 'pixel'}, {'box': (0, 0, 1, 1)}, (0, 0, 1, 1)),
        ({'point': (0.5, 1)}, {'point': (20, 30)}, (20, 30, 20, 30)),
        (
            {'polygon': [[0, 0, 20, 0, 20, 30], [1, 1, 2, 2, 3, 1]]},
            {'polygon': [[0, 0, 20, 0, 20, 30], [1, 1, 2, 2, 3, 1]]},
            (0, 0, 20, 30),
        ),
    ],
)
def test_a_mark_in_pixels_keeps_its_place(place, expected, around):
    mark = Mark('arrow', color='blue', width=2, **place)
    found = in_pixels(mark, (40, 30))
    assert found == Mark('arrow', color='blue', width=2, units='pixel', **expected)
    assert bounds(found) == around


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_mark_in_pixels_of_a_resized_picture_stays_inside(old, new):
    mark = in_pixels(Mark('rectangle', box=(0, 0, old, old), units='pixel'), (old, old), (new, new))
    assert mark.box == pytest.approx((0, 0, new, new))
    assert max(mark.box) <= new
