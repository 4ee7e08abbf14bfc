"""Questions about marked people: random wording and marks for training, fixed ones for evaluation."""

import json

import numpy as np
import pytest

from vipllava_jax.data.region_prompts import make_conversation
from vipllava_jax.data.vcr import answer_question, rationale_question

ROW = {
    'id': 'vcr-1',
    'image': 'a.png',
    'meta_dir': './dataset/meta/1.json',
    'class_names': ['person', 'dog', 'sofa'],
    'question': ['Why', 'is', [0], 'sad', ',', 'friend', '?'],
    'answer_choices': [[[1], 'left', '.'], ['No', 'reason', '.'], [[0, 1], 'fell', '.'], ['Hm', '.']],
    'answer_label': 2,
    'rationale_choices': [['The', 'floor', '.'], ['It', 'shows', '.'], [[2], 'is', 'red', '.'], ['Hm', '.']],
    'rationale_label': 0,
}
META = {
    'boxes': [[1, 2, 11, 12, 0.9], [5, 5, 20, 20, 0.8], [0, 0, 30, 20, 0.7]],
    'segms': [[[[1, 2], [11, 2], [6, 12]]], [[[5, 5], [6, 6]]], []],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta' / '1.json').write_text(json.dumps(META))
    return tmp_path


def test_the_answer_is_a_letter(folder):
    turns, (marks,) = answer_question(ROW, folder)
    assert turns[0].text == (
        'Why is the person at the red point sad, friend?\n'
        'A. The dog at the lime point left.\n'
        'B. No reason.\n'
        'C. The person at the red point and the dog at the lime point fell.\n'
        'D. Hm.\n'
        "Answer with the option's letter from the given choices directly."
    )
    assert turns[1].text == 'C'
    assert [(mark.shape, mark.box, mark.color) for mark in marks] == [
        ('point', (1, 2, 11, 12), 'red'),
        ('point', (5, 5, 20, 20), 'lime'),
    ]
    assert marks[0].polygon == (((1, 2), (11, 2), (6, 12)),)
    assert marks[1].polygon is None
    assert make_conversation(ROW, 1, folder, None) == answer_question(ROW, folder)


def test_the_rationale_is_a_letter(folder):
    turns, (marks,) = rationale_question(ROW, folder)
    assert turns[0].text == (
        'I give you a question and its answer, I need you to provide a rationale explaining why the answer '
        'is right. "Why is the person at the red point sad, friend?" The answer is "The person at the red '
        'point and the dog at the lime point fell.".What is the rationale for this decision?\n'
        'A. The floor.\n'
        'B. It shows.\n'
        'C. The sofa at the blue point is red.\n'
        'D. Hm.\n'
        "Answer with the option's letter from the given choices directly."
    )
    assert turns[1].text == 'A'
    assert len(marks) == 3


def test_training_asks_for_the_answer_and_then_the_rationale(folder):
    conversations = [make_conversation(ROW, 1, folder, np.random.default_rng(seed)) for seed in range(300)]
    assert all([turn.role for turn in one.turns] == ['user', 'assistant'] * 2 for one in conversations)
    with_choices = [('(D) Hm.' in one.turns[0].text, '(D) Hm.' in one.turns[2].text) for one in conversations]
    assert {*with_choices} == {(a, b) for a in (False, True) for b in (False, True)}
    for (answers, reasons), one in zip(with_choices, conversations, strict=True):
        question, answer, _, reason = (turn.text for turn in one.turns)
        assert 'sad, friend?' in question
        assert ('(C)' in answer) == answers
        assert answers or answer.endswith('fell.')
        assert ('(A)' in reason) == reasons
        assert reasons or reason == 'The floor.'
        assert len(one.marks[0]) == 2 + reasons  # only mentioned objects are marked
    shapes = {mark.shape for one in conversations for mark in one.marks[0]}
    assert len(shapes) == 7
    assert 'point' not in shapes
    words = ' '.join(one.turns[0].text for one in conversations)
    assert all(noun in words for noun in ('the person ', 'the object ', 'the instance '))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'answer_label': 4}, '"answer_label" is 4, but there are 4 "answer_choices"'),
        ({'rationale_label': None}, 'a row of vcr needs .*rationale_label, or a conversation'),
        ({'rationale_label': -1}, '"rationale_label" is -1'),
        ({'question': [[3], 'x']}, 'it mentions object 3, but 3 boxes are known'),
        ({'class_names': ['a']}, 'it mentions object'),
        ({'rationale_choices': [[[9]], ['x']]}, 'it mentions object 9'),
        ({'meta_dir': 'none.json'}, 'none.json: cannot be read'),
    ],
)
def test_invalid_rows_are_errors_without_a_generator(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        make_conversation({**ROW, **changes}, 1, folder, None)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'question': 'Why is he sad?'}, "expected a list of words .*, found 'Why is he sad"),
        ({'question': ['Why', 3]}, 'expected a list of words'),
        ({'question': ['Why', ['0']]}, 'expected a list of words'),
        ({'question': ['Why', [True]]}, 'expected a list of words'),
        ({'question': ['Why', None]}, 'expected a list of words'),
        ({'answer_choices': 'abcd'}, '"answer_choices" is .*: expected a list of lists'),
        ({'answer_choices': ['a', 'b', 'c', 'd']}, 'expected a list of words'),
        ({'answer_label': True}, '"answer_label" is True, but there are 4'),
        ({'answer_label': 10**400}, '"answer_label" is a whole number of 401 digits'),
        ({'class_names': 'pds'}, '"class_names" is .*: expected a list of strings'),
        ({'class_names': [1, 2, 3]}, '"class_names" is .*: expected a list of strings'),
    ],
)
def test_a_text_is_not_a_list_of_words(folder, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_conversation({**ROW, **changes}, 1, folder, None)
    assert len(str(caught.value)) < 500
