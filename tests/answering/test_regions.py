"""`ask_regions` answers as if each region were asked about alone, or with all others of its pass marked."""

import warnings

import numpy as np
import pytest
from PIL import Image

import vipllava_jax as vj
from vipllava_jax.answering import regions as module
from vipllava_jax.answering.prefixes import shared_prefix
from vipllava_jax.answering.region_marks import region_marks, told_apart
from vipllava_jax.answering.regions import RegionQuestions, answer_regions
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.world import Scene, Thing
from vipllava_jax.inputs.marks import COLORS

BOXES = [(20, 40, 140, 160), (190, 180, 310, 300), (75, 190, 145, 260)]
ANSWERS = ['a star', 'a house', 'a ring']
QUESTION = 'What is {mark}?'
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8))


@pytest.fixture(scope='module')
def scene():
    """Three plain things, which the demo model recognizes."""
    things = (
        Thing('star', 'navy', 'medium', 'plain', 80, 100, 50, 0.1),
        Thing('house', 'brown', 'medium', 'plain', 250, 240, 50, 0.0),
        Thing('ring', 'teal', 'small', 'plain', 110, 225, 35, 0.0),
    )
    return picture(Scene(things, 'flat', 5))


@pytest.fixture(scope='module')
def model(folder):
    return vj.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['separate', 'together'])
def test_the_answers_are_about_the_regions_in_their_order(demo_model, scene, mode):
    assert vj.ask_regions(demo_model, QUESTION, scene, BOXES, mode=mode) == ANSWERS
    assert vj.ask_regions(demo_model, QUESTION, scene, BOXES[::-1], mode=mode) == ANSWERS[::-1]


@pytest.mark.slow
def test_separate_answers_equal_those_of_answer_about_each_region(model):
    boxes = [(0, 0, 60, 50), (5, 5, 12, 12), (20, 2, 58, 11), (30, 30, 44, 49)]
    settings = vj.GenerationSettings(max_new_tokens=24, repetition_penalty=2.0)  # otherwise all are the same
    found = vj.ask_regions(model, QUESTION, PHOTO, boxes, shape='ellipse', settings=settings, fit='pad')
    marks = [vj.Mark('ellipse', box=box) for box in boxes]
    alone = [vj.answer(model, QUESTION, PHOTO, marks=mark, settings=settings, fit='pad') for mark in marks]
    assert found == alone
    assert len({*found}) > 1


@pytest.mark.slow
def test_together_answers_equal_those_about_a_picture_with_nine_marks(model, monkeypatch):
    """Eleven regions: nine marked on one picture, and two on another."""
    prefixes = []
    monkeypatch.setattr(
        module, 'shared_prefix', lambda *given: (prefixes.append(p := shared_prefix(*given)), p)[1]
    )
    boxes = [(n, 2 * n, 30 + n, 25 + n) for n in range(11)]
    settings = vj.GenerationSettings(max_new_tokens=6)
    found = vj.ask_regions(model, QUESTION, PHOTO, boxes, mode='together', settings=settings, fit='pad')
    colors = [[*COLORS][n % 9] for n in range(11)]
    marks = [vj.Mark('rectangle', box=box, color=color) for box, color in zip(boxes, colors, strict=True)]
    drawn = [vj.draw(PHOTO, marks[:9])] * 9 + [vj.draw(PHOTO, marks[9:])] * 2
    for n in (0, 4, 8, 9, 10):
        question = f'What is within the {colors[n]} rectangle?'
        assert vj.answer(model, question, drawn[n], settings=settings, fit='pad') == found[n]
    assert len(found) == 11
    assert [prefix and prefix.ids.size > 20 for prefix in prefixes] == [True, True]


def test_a_region_may_have_any_of_the_forms():
    x1, y1, x2, y2 = BOXES[0]
    forms = [
        (x1, y1, x2, y2),
        np.array([x1, y1, x2, y2]),
        vj.Mark('rectangle', box=(x1, y1, x2, y2), units='pixel'),
        f'rectangle:{x1},{y1},{x2},{y2}:units=pixel',
        {'box': [x1, y1, x2, y2], 'units': 'pixels', 'image': 1},
        {'bbox': [x1, y1, x2 - x1, y2 - y1], 'id': 4},
    ]
    assert region_marks(iter(forms), 'rectangle', (336, 336)) == [forms[2]] * len(forms)
    rounded = {'bbox': [-0.4, y1, x2 + 0.4, y2 - y1]}
    fractions = (0.0, y1 / 336, x2 / 336, y2 / 336)
    one, other = region_marks([rounded, fractions], 'ellipse', (336, 336))
    assert one.region((336, 336)).box == pytest.approx(other.region((336, 336)).box)


def test_no_regions_have_no_answers(model):
    assert vj.ask_regions(model, QUESTION, PHOTO, []) == []


def test_numbers_per_region_and_seeds_are_those_of_each_row(model):
    marks = [vj.Mark('rectangle', box=(n, n, 20 + n, 20 + n)) for n in range(3)]
    questions = RegionQuestions.of(model.processor, QUESTION, PHOTO, marks, mode='separate', rows=2)
    assert [questions.rows(group) for group in questions.groups] == [[0, 1], [2, 2]]
    settings = vj.GenerationSettings(seed=2**32 - 2, top_k=[5, 6, 7], temperature=0.5)
    expected = vj.GenerationSettings(seed=[0, 0], top_k=[7, 7], temperature=0.5)
    assert questions.settings(settings, [2, 2]) == expected


@pytest.mark.slow
def test_samples_and_numbers_of_a_region_do_not_depend_on_the_batch(model):
    boxes = [(n, n, 20 + n, 20 + n) for n in range(3)]
    marks = [vj.Mark('rectangle', box=box) for box in boxes]
    sampled = {'temperature': 2.0, 'max_new_tokens': 5}
    settings = vj.GenerationSettings(seed=2**32 - 1, **sampled)
    found = vj.ask_regions(model, QUESTION, PHOTO, boxes, settings=settings, fit='pad')
    seeds = (2**32 - 1, 0, 1)  # those of each region
    for_each = vj.GenerationSettings(temperature=2.0, max_new_tokens=[5, 5, 2], seed=seeds)
    questions = RegionQuestions.of(
        model.processor, QUESTION, PHOTO, marks, mode='separate', fit='pad', rows=2
    )
    several = [answers.reply for group in answer_regions(model, questions, for_each) for answers in group]
    assert [len(reply.tokens) for reply in several] == [5, 5, 2]
    assert [model.processor.decode(reply.tokens).strip() for reply in several[:2]] == found[:2]
    alone = vj.GenerationSettings(seed=[0], **sampled)
    assert vj.answer(model, QUESTION, PHOTO, marks=marks[1], settings=alone, fit='pad') == found[1]


def test_marks_keep_colors_that_tell_them_apart_and_otherwise_get_others():
    box = (1, 1, 9, 9)
    own = [vj.Mark('rectangle', box=box, color='gold'), vj.Mark('point', box=box, color='red')]
    assert told_apart(own) == own
    for colors in (('red', 'red'), ('gold', (1, 2, 3))):
        marks = [vj.Mark('rectangle', box=box, color=color, alpha=9) for color in colors]
        assert [(mark.color, mark.alpha) for mark in told_apart(marks)] == [('red', 9), ('lime', 9)]


def test_marks_that_are_cut_off_are_named_in_a_warning(model):
    settings = vj.GenerationSettings(max_new_tokens=6)
    boxes = [(30, 5, 60, 20), (200, 60, 230, 90), (120, 20, 180, 80), (120, 30, 150, 60)]
    wide = Image.new('RGB', (300, 100))
    with pytest.warns(
        UserWarning, match='cuts off 2 of 4 marks, the first of them ellipse:30,5,60,20'
    ) as all:
        vj.ask_regions(model, QUESTION, wide, boxes, shape='ellipse', settings=settings, fit='crop')
    assert all[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        vj.ask_regions(model, QUESTION, wide, boxes, shape='ellipse', settings=settings, fit='pad')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'question': 'What is it?'}, 'does not say which region it is about: write {mark} where'),
        ({'question': 'Is {mark} {mark2}?'}, 'the question says {mark2}, but is about one region'),
        ({'question': None}, 'the question is None: expected a string'),
        ({'mode': 'all'}, "unknown mode 'all': choose separate or together"),
        ({'shape': 'star'}, "unknown shape 'star'"),
        ({'image': 'none.jpg'}, "no picture at 'none.jpg'"),
        ({'image': [PHOTO]}, 'of type list: expected a path'),
        ({'regions': (1, 2, 3, 4)}, 'regions[0]: expected a box (x1, y1, x2, y2), a Mark or an annotation'),
        ({'regions': vj.Mark('point', point=(1, 1))}, 'expected a list of boxes, Marks or annotations'),
        ({'regions': [(1, 2, 3, 4), (1, 2, 3)]}, 'regions[1]: found 3 numbers'),
        ({'regions': [(1, 2, 90, 4)]}, 'regions[0]: mark rectangle:1,2,90,4:red:units=pixel lies outside'),
        ({'regions': [{'bbox': [1, 2, 0, 4]}]}, 'regions[0]: bbox [1, 2, 0, 4] has no area'),
        ({'regions': [{'boxes': 1}]}, "regions[0]: unknown field 'boxes'"),
        ({'regions': ['2/point:1,1']}, 'is on image 2, but there is 1 image'),
        ({'regions': [{'point': [1, 1], 'shape': 'point', 'image': 2}]}, 'is on image 2'),
        ({'template': 'none'}, "unknown template 'none'"),
        ({'fit': 'none'}, "unknown fit 'none'"),
        ({'settings': vj.GenerationSettings(max_new_tokens=10**6)}, 'request at most'),
        ({'settings': vj.GenerationSettings(temperature=[1.0] * 3)}, 'temperature has the shape (3,)'),
        (
            {'settings': vj.GenerationSettings(num_return_sequences=2, temperature=1.0)},
            'num_return_sequences is 2, but there is one answer per region',
        ),
    ],
)
def test_invalid_input_is_an_error_before_anything_runs(model, arguments, message):
    given = {'question': QUESTION, 'image': PHOTO, 'regions': [(1, 1, 9, 9)], **arguments}
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as error:
        vj.ask_regions(model._replace(params=None), **given)
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_too_many_regions_are_an_error(model, monkeypatch):
    monkeypatch.setattr('vipllava_jax.answering.region_marks.MAX_MARKS', 2)
    with pytest.raises(ValueError, match='more than 2 regions'):
        vj.ask_regions(model, QUESTION, PHOTO, [(1, 1, 9, 9)] * 3)
