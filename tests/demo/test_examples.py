"""Examples are reproducible, every answer is right, and training has no held-out combinations."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from tests.demo.oracle import answer
from vipllava_jax.demo.examples import example
from vipllava_jax.demo.marking import SHAPES
from vipllava_jax.demo.question_types import TYPES
from vipllava_jax.demo.questions import View
from vipllava_jax.demo.world import COLORS, KINDS, held_out
from vipllava_jax.inputs.marks import COLORS as MARK_COLORS

TRAINING = [example(number) for number in range(1500)]
HELD_OUT = [example(number, 'held out') for number in range(600)]


def test_an_example_is_always_the_same():
    assert [example(number) for number in range(20)] == TRAINING[:20]
    assert all(
        np.array_equal(example(number).picture(), TRAINING[number].picture())
        for number in range(20)
        if TRAINING[number].scene
    )
    assert example(5, 'held out') != example(5)


@pytest.mark.parametrize('split', ['training', 'held out'])
def test_held_out_combinations_are_never_marked_in_training(split):
    found = set()
    for sample in TRAINING if split == 'training' else HELD_OUT:
        for mark, at in sample.marks:
            thing = sample.scene.things[at]
            assert held_out(thing.kind, thing.color, mark.shape) == (split == 'held out')
            found.add((thing.kind, thing.color, mark.shape))
    assert len(found) > (500 if split == 'training' else 50)


def test_some_combinations_of_every_kind_and_shape_are_held_out():
    out = [(k, c, s) for k in KINDS for c in COLORS for s in SHAPES if held_out(k, c, s)]
    assert 0.05 < len(out) / (len(KINDS) * len(COLORS) * len(SHAPES)) < 0.15
    for axis, names in enumerate((KINDS, COLORS, SHAPES)):
        assert {combination[axis] for combination in out} == set(names)


def test_answers_equal_those_derived_from_the_wording():
    counts = Counter()
    for sample in TRAINING + HELD_OUT:
        for question in sample.questions if sample.scene else ():
            assert answer(View(sample.scene, sample.marks), question.text) == question.answer, question
            counts[question.type] += 1
    assert {*counts, 'words'} == set(TYPES)
    assert min(counts.values()) > 80


def test_the_shape_of_a_mark_is_asked_only_where_it_is_recognizable():
    things = defaultdict(set)
    for number in range(3000):
        sample = example(number, types=['mark'])
        for question in sample.questions if sample.scene else ():
            ((mark, at),) = sample.marks
            thing = sample.scene.things[at]
            if question.answer == mark.shape:
                things[mark.shape].add((thing.size, thing.kind))
    assert set(things) == set(SHAPES)
    for shape in ('triangle', 'scribble'):
        assert {size for size, _ in things[shape]} == {'medium', 'large'}
    assert not {'square', 'ball'} & {kind for _, kind in things['mask contour']}
    assert {size for size, _ in things['arrow']} == {'small', 'medium', 'large'}


def test_the_turns_are_the_questions_and_their_answers():
    for sample in TRAINING[:300]:
        assert [turn.role for turn in sample.turns] == ['user', 'assistant'] * len(sample.questions)
        for question, user, assistant in zip(
            sample.questions, sample.turns[::2], sample.turns[1::2], strict=True
        ):
            assert user.text.startswith(question.text)
            assert assistant.text == (question.sentence if 'sentence' in user.text else question.answer)


def test_no_answer_reveals_another():
    for sample in TRAINING:
        facts = [fact for question in sample.questions for fact in question.facts]
        assert len(facts) == len(set(facts))


def test_every_word_of_the_world_occurs():
    words, answers = defaultdict(set), defaultdict(Counter)
    for sample in TRAINING:
        for question in sample.questions:
            words[question.type].add(question.text)
            answers[question.type][question.answer] += 1
    assert min(map(len, words.values())) > 4
    for type, counted in answers.items():
        assert counted.most_common(1)[0][1] < 0.7 * counted.total(), type
    marks = [mark for sample in TRAINING for mark, _ in sample.marks]
    assert {mark.shape for mark in marks} == set(SHAPES)
    assert {mark.color for mark in marks} == set(MARK_COLORS)
    assert {len(sample.marks) for sample in TRAINING} == {0, 1, 2}
    assert any(sample.scene is None for sample in TRAINING)


def test_a_mark_changes_pixels_of_its_thing():
    for sample in TRAINING[:60]:
        for one in sample.marks:
            bare = sample._replace(marks=()).picture()
            changed = np.any(np.asarray(sample._replace(marks=(one,)).picture()) != np.asarray(bare), axis=2)
            thing = sample.scene.things[one.thing]
            y, x = np.nonzero(changed)
            near = np.hypot(x - thing.x, y - thing.y).min()
            assert changed.sum() > 20
            assert near < thing.radius * 1.5 + 8
