"""`vipllava demo` shows the model's answers next to the right ones, without a download."""

import io
import re
import sys
from functools import partial

import pytest
from PIL import Image, ImageChops

from vipllava_jax import loading
from vipllava_jax.answering import replies
from vipllava_jax.cli import demo
from vipllava_jax.generation import decoding


@pytest.fixture
def calls(monkeypatch):
    """Replaces the model's answers by 'a star'; returns the list of pictures and their questions."""
    calls = []

    def answer_questions(model, picture, questions):
        calls.append((picture, questions))
        return ['a star' for _ in questions]

    monkeypatch.setattr(demo, 'answer_questions', answer_questions)
    return calls


def test_answers_are_printed_next_to_the_right_ones(vipllava, tmp_path, calls):
    ran = vipllava('demo', '--seed', 7, '--output', tmp_path / 'demo.png')
    assert (ran.code, ran.err) == (0, '')
    scenario = demo.random_scenario(7)
    ((picture, questions),) = calls
    for question, right in scenario.questions:
        verdict = 'right' if right == 'a star' else f'wrong; right: {right}'
        assert f'\n{question}\n  a star  ({verdict})\n' in ran.out
    assert questions == [question for question, _ in scenario.questions]
    with Image.open(tmp_path / 'demo.png') as saved:
        assert not ImageChops.difference(saved, picture).getbbox()


def test_the_same_seed_gives_the_same_picture(vipllava, tmp_path, calls):
    vipllava('demo', '--seed', 1, '--output', tmp_path / 'a.png')
    vipllava('demo', '--seed', 1, '--output', tmp_path / 'b.png')
    vipllava('demo', '--seed', 2, '--output', tmp_path / 'c.png')
    a, b, c = ((tmp_path / f'{name}.png').read_bytes() for name in 'abc')
    assert a == b != c


@pytest.mark.parametrize('seed', range(12))
def test_every_picture_has_a_mark_and_questions_with_answers(seed):
    scenario = demo.random_scenario(seed)
    assert len(scenario.marks) == 1
    assert len(scenario.questions) >= 3
    assert all(right for _, right in scenario.questions)
    for question, _ in scenario.questions:
        assert not re.search('next|is with |see as|thing is the thing|are like', question), (
            'not natural English'
        )


@pytest.mark.slow
def test_batches_have_one_shape(demo_model, monkeypatch):
    scenario, shapes = demo.random_scenario(7), []
    stream = decoding.stream

    def recorded(params, batch, **settings):
        shapes.append((batch.tokens.shape, batch.images.shape))
        return stream(params, batch, **settings)

    monkeypatch.setattr(replies, 'stream', recorded)
    questions = [question for question, _ in scenario.questions]
    questions += ['How many objects are there?', 'Where is it?']
    answers = partial(demo.answer_questions, demo_model, scenario.picture)
    together = answers(questions)
    assert len(shapes) == 2
    alone = [answers([question])[0] for question in questions[-3:]]
    assert together[-3:] == alone
    assert len({*shapes}) == 1
    assert len(together) == len(questions) > demo.ROWS


def test_most_answers_are_right(vipllava, tmp_path):
    """At 90 % accuracy, fewer than 8 right answers of 13 have a probability of about 0.001."""
    verdicts = []
    for seed in range(3):
        ran = vipllava('demo', '--seed', seed, '--output', tmp_path / 'demo.png')
        assert (ran.code, ran.err) == (0, '')
        verdicts += re.findall(r'\((right|wrong; right: .*)\)\n', ran.out)
    assert len(verdicts) == 13
    assert verdicts.count('right') >= 8, verdicts


def test_the_users_questions_replace_the_default_ones(vipllava, tmp_path):
    ran = vipllava('demo', '--seed', 3, '--output', tmp_path / 'demo.png', 'What is {mark}?', 'Where is it?')
    assert (ran.code, ran.err) == (0, '')
    (mark,) = demo.random_scenario(3).marks
    assert f'\nWhat is {mark.phrase}?\n' in ran.out
    assert '\nWhere is it?\n' in ran.out
    assert 'wrong' not in ran.out


def test_the_users_picture_and_mark(vipllava, photo, tmp_path, calls):
    mark, output = 'ellipse:20,10,60,50:orange', tmp_path / 'out.png'
    ran = vipllava('demo', '--image', photo, '--mark', mark, '--output', output)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f'{output}: a picture with an orange ellipse\n')
    assert calls[0][1] == ['What is within the orange ellipse?']


def test_the_chat_ends_at_an_empty_line(vipllava, tmp_path, calls):
    lines = '\ufeffWhat colour is the object {mark}?\nAnd its size?\n\nnever asked\n'
    ran = vipllava('demo', '--seed', 3, '--chat', '--output', tmp_path / 'demo.png', stdin=lines)
    assert ran.code == 0, ran.err
    (mark,) = demo.random_scenario(3).marks
    assert [questions for _, questions in calls[1:]] == [
        [f'What colour is the object {mark.phrase}?'],
        ['And its size?'],
    ]


def test_an_invalid_question_does_not_end_the_chat(vipllava, tmp_path, calls):
    lines = 'Where is {mark2}?\nWhat is {mark}?\n'
    ran = vipllava('demo', '--seed', 3, '--chat', '--output', tmp_path / 'demo.png', stdin=lines)
    assert (ran.code, ran.err) == (0, '')
    assert '{mark2}, but there is 1 mark' in ran.out
    assert len(calls) == 2


def test_a_byte_order_mark_is_ignored(vipllava, tmp_path, calls):
    lines = '\ufeffAnd its size?\n'
    assert vipllava('demo', '--chat', '--output', tmp_path / 'demo.png', stdin=lines).code == 0
    assert calls[-1][1] == ['And its size?']


def test_the_end_of_the_terminals_input_ends_the_chat(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, 'stdin', Terminal('What?\n'))
    assert [*demo._lines()] == ['What?']


def test_the_input_picture_is_not_overwritten(vipllava, photo, calls):
    before = photo.read_bytes()
    ran = vipllava('demo', '--image', photo, '--mark', 'point:3,4', '--output', photo)
    assert (ran.code, ran.out) == (2, '')
    assert 'choose another path' in ran.err
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--mark', 'point:3,4'), '--mark needs an --image'),
        (('--output', 'demo.txt'), 'expected a name that ends in .png or .jpg'),
        (('What is {mark2}?',), 'there is 1 mark'),
        (('What?', ' '), 'a question is empty'),
        (('--image', '-', '--chat'), 'both read stdin'),
        (('--image', 'nowhere.png'), 'nowhere.png'),
    ],
)
def test_an_error_is_one_line(vipllava, tmp_path, monkeypatch, calls, args, message):
    monkeypatch.chdir(tmp_path)
    ran = vipllava('demo', *args)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert message in ran.err
    assert not calls


def test_commands_accept_demo_as_a_model(vipllava, tmp_path):
    folder = loading.locate('demo')
    assert folder == loading.bundled()
    by_name = vipllava('info', '--model', 'demo')
    assert by_name.code == 0
    assert by_name == vipllava('info', '--model', folder)
    assert vipllava('convert', 'demo', tmp_path / 'converted').code == 0
    assert loading.locate(tmp_path / 'converted')


def test_a_folder_named_demo_is_given_with_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'demo').symlink_to(loading.bundled())
    assert loading.locate('demo') == loading.bundled()
    assert loading.locate('./demo').absolute() == tmp_path / 'demo'
