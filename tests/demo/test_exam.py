"""The exam is held out, covers every type and mark, and its rows match its pictures."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from scripts.demo import exam
from tests.demo.oracle import answer
from tests.worlds import of_all_types, rows
from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.marking import SHAPES
from vipllava_jax.demo.question_types import TYPES
from vipllava_jax.demo.questions import View
from vipllava_jax.demo.world import held_out
from vipllava_jax.evaluation import cases

ALL = of_all_types(8)
MARKS = [case for shape in SHAPES for case in exam.of_mark(shape, 3)]
MOVED = [*exam.moved(20)]


def test_every_combination_is_held_out():
    for _, sample in ALL + MARKS + MOVED:
        for mark, at in sample.marks:
            thing = sample.scene.things[at]
            assert held_out(thing.kind, thing.color, mark.shape)


def test_the_fields_of_a_row_describe_its_case():
    assert Counter(fields['type'] for fields, _ in ALL) == dict.fromkeys(TYPES, 8)
    for fields, sample in ALL:
        assert [question.type for question in sample.questions] == [fields['type']]
        hand = 'none' if sample.scene is None else 'fixed' if sample.seed is None else 'varied'
        assert fields['hand'] == hand
    for fields, sample in MARKS:
        assert [mark.shape for mark, _ in sample.marks] == [fields['shape']]
        assert [question.type for question in sample.questions] == ['kind']


def test_three_of_four_pictures_have_varied_marks():
    hands = Counter(case.fields['hand'] for case in of_all_types(30))
    assert 0.2 < hands['fixed'] / (hands['fixed'] + hands['varied']) < 0.3
    assert hands['none'] == 30


def test_a_pair_has_one_picture_with_the_mark_on_two_things():
    for one, other in zip(MOVED[::2], MOVED[1::2], strict=True):
        assert one.fields == other.fields
        assert one.example.scene == other.example.scene
        (a, at), (b, there) = one.example.marks[0], other.example.marks[0]
        assert (a.shape, a.color, one.example.seed) == (b.shape, b.color, other.example.seed)
        assert one.example.turns[0] == other.example.turns[0]
        assert one.example.turns[1] != other.example.turns[1]
        for case, thing in ((one, at), (other, there)):
            kind = case.example.scene.things[thing].kind
            assert case.example.turns[1].text == f'a {kind}'


def test_questions_about_the_new_kind_are_mixed_with_others():
    taught = [*exam.taught('fish', 40)]
    assert {fields['kind'] for fields, _ in taught} == {'fish', 'other'}
    for fields, sample in taught:
        (question,) = sample.questions
        assert (question.answer == 'a fish') == (fields['kind'] == 'fish')
        assert answer(View(sample.scene, sample.marks), question.text) == question.answer


def test_eval_reads_the_rows(tmp_path):
    some = [*ALL[::9], *MARKS[::9], *MOVED[:2]]
    written = rows(tmp_path, some)
    loaded = cases.read_cases(written, tmp_path)
    for (_, sample), case in zip(some, loaded.cases, strict=True):
        assert case.turns == sample.turns[:1]
        assert case.accepted == (sample.turns[1].text,)
        assert not any(case.marks)
        for path in case.images:
            with Image.open(path) as image:
                np.testing.assert_array_equal(image, sample.picture())
                assert not sample.marks or np.any(np.asarray(image) != np.asarray(picture(sample.scene)))


def test_files_are_written_in_parallel(tmp_path):
    file = exam.write(tmp_path, 'moved', MOVED[:4])
    written = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row['pair'] for row in written] == [0, 0, 1, 1]
    assert cases.read_cases([file], together=['pair']).cases[3].sets == (('pair', '1'),)


@pytest.mark.parametrize('name', ['types', 'marks', 'moved'])
def test_the_same_numbers_give_the_same_cases(name):
    again = {'types': of_all_types(8), 'marks': [*exam.of_mark(SHAPES[0], 3)], 'moved': [*exam.moved(20)]}
    assert again[name] == {'types': ALL, 'marks': MARKS[:3], 'moved': MOVED}[name]
