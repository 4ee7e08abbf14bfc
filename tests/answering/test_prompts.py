"""Marks are drawn on the image that they name, and their phrases replace {mark} in the question."""

import numpy as np
import pytest
from PIL import Image

import vipllava_jax as vj
from vipllava_jax.answering.prompts import insert_phrases, mark_images

RED = vj.Mark('rectangle', box=(10, 10, 40, 40))
BLUE = vj.Mark('arrow', box=(10, 10, 40, 40), color='blue')


@pytest.fixture
def images():
    return [Image.new('RGB', (60, 50), (n, 100, 100)) for n in (10, 20)]


def test_marks_are_drawn_on_their_images(images):
    drawn, marks = mark_images(images, [RED, '2/arrow:10,10,40,40:blue', 'point:5,5'])
    assert marks == [RED, BLUE, vj.Mark('point', point=(5, 5))]
    np.testing.assert_array_equal(drawn[0], vj.draw(images[0], [RED, marks[2]]))
    np.testing.assert_array_equal(drawn[1], vj.draw(images[1], [BLUE]))


def test_a_single_mark_needs_no_list(images):
    for mark in (RED, str(RED)):
        assert mark_images(images, mark)[1] == [RED]


def test_an_image_without_marks_is_only_opened(images):
    drawn, marks = mark_images(images, ())
    assert marks == []
    np.testing.assert_array_equal(drawn[1], images[1])


@pytest.mark.parametrize(
    ('marks', 'message'),
    [
        ('3/point:1,1', 'mark point:1,1:red is on image 3, but there are 2 images'),
        (['point:1'], "mark 'point:1': '1' has 1 numbers"),
        ([RED, 'point:100,1'], 'mark point:100,1:red lies outside the picture'),
        ([RED, 3], 'expected a Mark, or a string such as point:40,60:red, found 3'),
        (3, 'expected a mark or a list of marks, found 3'),
    ],
)
def test_an_invalid_mark_is_an_error(images, marks, message):
    with pytest.raises((ValueError, TypeError)) as error:
        mark_images(images, marks)
    assert message in str(error.value)


def test_a_mark_needs_an_image():
    with pytest.raises(ValueError, match='there is a mark but no image'):
        mark_images([], RED)


def test_phrases_replace_their_numbers():
    text = insert_phrases('{mark}, {mark1} and {mark02}; {marks} {mark-1}', [RED, BLUE])
    red, blue = 'within the red rectangle', 'pointed to by the blue arrow'
    assert text == f'{red}, {red} and {blue}; {{marks}} {{mark-1}}'
    assert insert_phrases('What?', []) == 'What?'


@pytest.mark.parametrize('name', ['{mark0}', '{mark3}', '{mark' + '9' * 5000 + '}'])
def test_the_number_of_a_missing_mark_is_an_error(name):
    with pytest.raises(ValueError, match=r'but there are 2 marks: add one') as error:
        insert_phrases(f'What is {name}?', [RED, BLUE])
    assert len(str(error.value)) < 200
