"""Examples are reproducible, every answer is right, and training has no held-out combinations."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from tests.demo.oracle import answer
from vipllava_jax.demo.asking import TYPES
from vipllava_jax.demo.examples import example
from vipllava_jax.demo.marking import SHAPES
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
    for made in TRAINING if split == 'training' else HELD_OUT:
        for mark, at in made.marks:
            thing = made.scene.things[at]
            assert held_out(thing.kind, thing.color, mark.shape) == (split == 'held out')
            found.add((thing.kind, thing.color, mark.shape))
    assert len(found) > (500 if split == 'training' else 50)


def test_some_combinations_of_every_kind_and_shape_are_held_out():
    out = [(k, c, s) for k in KINDS for c in COLORS for s in SHAPES if held_out(k, c, s)]
    assert 0.05 < len(out) / (len(KINDS) * len(COLORS) * len(SHAPES)) < 0.15
    for axis, names in enumerate((KINDS, COLORS, SHAPES)):
        assert {combination[axis] for combination in out} == set(names)


def test_every_answer_is_found_again_from_the_words():
    asked = Counter()
    for made in TRAINING + HELD_OUT:
        for question in made.questions if made.scene else ():
            assert answer(View(made.scene, made.marks), question.text) == question.answer, question
            asked[question.type] += 1
    assert {*asked, 'words'} == set(TYPES)
    assert min(asked.values()) > 80


def test_the_shape_of_a_mark_is_asked_where_it_shows():
    asked = defaultdict(set)
    for number in range(3000):
        made = example(number, types=['mark'])
        for question in made.questions if made.scene else ():
            ((mark, at),) = made.marks
            thing = made.scene.things[at]
            if question.answer == mark.shape:
                asked[mark.shape].add((thing.size, thing.kind))
    assert set(asked) == set(SHAPES)
    for shape in ('triangle', 'scribble'):
        assert {size for size, _ in asked[shape]} == {'medium', 'large'}
    assert not {'square', 'ball'} & {kind for _, kind in asked['mask contour']}
    assert {size for size, _ in asked['arrow']} == {'small', 'medium', 'large'}


def test_the_turns_are_the_questions_and_their_answers():
    for made in TRAINING[:300]:
        assert [turn.role for turn in made.turns] == ['user', 'assistant'] * len(made.questions)
        for question, asked, said in zip(made.questions, made.turns[::2], made.turns[1::2], strict=True):
            assert asked.text.startswith(question.text)
            assert said.text == (question.sentence if 'sentence' in asked.text else question.answer)


def test_no_answer_is_given_away_before_it_is_asked():
    for made in TRAINING:
        facts = [fact for question in made.questions for fact in question.facts]
        assert len(facts) == len(set(facts))


def test_everything_occurs_in_varied_words():
    words, answers = defaultdict(set), defaultdict(Counter)
    for made in TRAINING:
        for question in made.questions:
            words[question.type].add(question.text)
            answers[question.type][question.answer] += 1
    assert min(map(len, words.values())) > 4
    for type, counted in answers.items():
        assert counted.most_common(1)[0][1] < 0.7 * counted.total(), type
    marks = [mark for made in TRAINING for mark, _ in made.marks]
    assert {mark.shape for mark in marks} == set(SHAPES)
    assert {mark.color for mark in marks} == set(MARK_COLORS)
    assert {len(made.marks) for made in TRAINING} == {0, 1, 2}
    assert any(made.scene is None for made in TRAINING)


def test_a_mark_shows_on_its_thing():
    for made in TRAINING[:60]:
        for one in made.marks:
            bare = made._replace(marks=()).picture()
            changed = np.any(np.asarray(made._replace(marks=(one,)).picture()) != np.asarray(bare), axis=2)
            thing = made.scene.things[one.thing]
            y, x = np.nonzero(changed)
            near = np.hypot(x - thing.x, y - thing.y).min()
            assert changed.sum() > 20
            assert near < thing.radius * 1.5 + 8
