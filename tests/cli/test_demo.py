"""`vipllava demo` shows the model's answers next to the right ones, without a download."""

import io
import re
import sys

import pytest
from PIL import Image, ImageChops

from vipllava_jax import loading
from vipllava_jax.cli import demo
from vipllava_jax.generation import decoding


@pytest.fixture
def said(monkeypatch):
    """Replaces the model's answers by 'a star'; returns the list of pictures and questions asked."""
    asked = []

    def answer(model, picture, questions):
        asked.append((picture, questions))
        return ['a star' for _ in questions]

    monkeypatch.setattr(demo, 'answer', answer)
    return asked


def test_it_asks_and_says_what_is_right(vipllava, tmp_path, said):
    ran = vipllava('demo', '--seed', 7, '--output', tmp_path / 'demo.png')
    assert (ran.code, ran.err) == (0, '')
    shown = demo.made(7)
    (picture, questions), *more = said
    assert not more
    for question, right in shown.asked:
        verdict = 'right' if right == 'a star' else f'wrong; right: {right}'
        assert f'\n{question}\n  a star  ({verdict})\n' in ran.out
    assert questions == [question for question, _ in shown.asked]
    with Image.open(tmp_path / 'demo.png') as saved:
        assert not ImageChops.difference(saved, picture).getbbox()


def test_a_seed_is_a_picture(vipllava, tmp_path, said):
    vipllava('demo', '--seed', 1, '--output', tmp_path / 'a.png')
    vipllava('demo', '--seed', 1, '--output', tmp_path / 'b.png')
    vipllava('demo', '--seed', 2, '--output', tmp_path / 'c.png')
    a, b, c = ((tmp_path / f'{name}.png').read_bytes() for name in 'abc')
    assert a == b != c


@pytest.mark.parametrize('seed', range(12))
def test_every_picture_has_a_mark_and_questions_with_answers(seed):
    shown = demo.made(seed)
    assert len(shown.marks) == 1
    assert len(shown.asked) >= 3
    assert all(right for _, right in shown.asked)
    for question, _ in shown.asked:
        assert not re.search('next|is with |see as|thing is the thing|are like', question), 'nobody asks so'


def test_however_many_are_asked_no_shape_is_new(demo_model, monkeypatch):
    shown, shapes = demo.made(7), []
    generate = decoding.generate

    def seen(params, batch, **settings):
        shapes.append((batch.tokens.shape, batch.images.shape))
        return generate(params, batch, **settings)

    monkeypatch.setattr(decoding, 'generate', seen)
    questions = [question for question, _ in shown.asked] + ['How many objects are there?', 'Where is it?']
    together = demo.answer(demo_model, shown.picture, questions)
    assert len(shapes) == 2
    alone = [demo.answer(demo_model, shown.picture, [question])[0] for question in questions[-3:]]
    assert together[-3:] == alone
    assert len({*shapes}) == 1
    assert len(together) == len(questions) > demo.ROWS


def test_it_is_mostly_right(vipllava, tmp_path):
    """At 90 % accuracy, fewer than 8 right answers of 13 have a probability of about 0.001."""
    verdicts = []
    for seed in range(3):
        ran = vipllava('demo', '--seed', seed, '--output', tmp_path / 'demo.png')
        assert (ran.code, ran.err) == (0, '')
        verdicts += re.findall(r'\((right|wrong; right: .*)\)\n', ran.out)
    assert len(verdicts) == 13
    assert verdicts.count('right') >= 8, verdicts


def test_questions_of_the_users_own(vipllava, tmp_path):
    ran = vipllava('demo', '--seed', 3, '--output', tmp_path / 'demo.png', 'What is {mark}?', 'Where is it?')
    assert (ran.code, ran.err) == (0, '')
    (mark,) = demo.made(3).marks
    assert f'\nWhat is {mark.phrase}?\n' in ran.out
    assert '\nWhere is it?\n' in ran.out
    assert 'wrong' not in ran.out


def test_a_picture_of_the_users_own(vipllava, photo, tmp_path, said):
    mark, output = 'ellipse:20,10,60,50:orange', tmp_path / 'out.png'
    ran = vipllava('demo', '--image', photo, '--mark', mark, '--output', output)
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f'{output}: a picture with an orange ellipse\n')
    assert said[0][1] == ['What is within the orange ellipse?']


def test_it_goes_on_until_an_empty_line(vipllava, tmp_path, said):
    lines = '\ufeffWhat colour is the object {mark}?\nAnd its size?\n\nnever asked\n'
    ran = vipllava('demo', '--seed', 3, '--chat', '--output', tmp_path / 'demo.png', stdin=lines)
    assert ran.code == 0, ran.err
    (mark,) = demo.made(3).marks
    assert [questions for _, questions in said[1:]] == [
        [f'What colour is the object {mark.phrase}?'],
        ['And its size?'],
    ]


def test_a_question_that_is_wrong_does_not_end_it(vipllava, tmp_path, said):
    lines = 'Where is {mark2}?\nWhat is {mark}?\n'
    ran = vipllava('demo', '--seed', 3, '--chat', '--output', tmp_path / 'demo.png', stdin=lines)
    assert (ran.code, ran.err) == (0, '')
    assert '{mark2}, but there is 1 mark' in ran.out
    assert len(said) == 2


def test_a_byte_order_mark_in_front_of_the_questions(vipllava, tmp_path, said):
    lines = '\ufeffAnd its size?\n'
    assert vipllava('demo', '--chat', '--output', tmp_path / 'demo.png', stdin=lines).code == 0
    assert said[-1][1] == ['And its size?']


def test_the_end_of_a_terminals_input_ends_it(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, 'stdin', Terminal('What?\n'))
    assert [*demo._lines()] == ['What?']


def test_a_picture_is_not_written_over(vipllava, photo, said):
    before = photo.read_bytes()
    ran = vipllava('demo', '--image', photo, '--mark', 'point:3,4', '--output', photo)
    assert (ran.code, ran.out) == (2, '')
    assert 'choose another place' in ran.err
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ('given', 'told'),
    [
        (('--mark', 'point:3,4'), '--mark needs an --image'),
        (('--output', 'demo.txt'), 'end the name in .png or .jpg'),
        (('What is {mark2}?',), 'there is 1 mark'),
        (('What?', ' '), 'a question is empty'),
        (('--image', 'nowhere.png'), 'nowhere.png'),
    ],
)
def test_mistakes_are_told_in_a_line(vipllava, tmp_path, monkeypatch, said, given, told):
    monkeypatch.chdir(tmp_path)
    ran = vipllava('demo', *given)
    assert (ran.code, ran.out, ran.err.count('\n')) == (2, '', 1)
    assert told in ran.err
    assert not said


def test_the_name_is_understood_wherever_a_model_is_named(vipllava, tmp_path):
    folder = loading.locate('demo')
    assert folder == loading.bundled()
    by_name = vipllava('info', '--model', 'demo')
    assert by_name.code == 0
    assert by_name == vipllava('info', '--model', folder)
    assert vipllava('convert', 'demo', tmp_path / 'converted').code == 0
    assert loading.locate(tmp_path / 'converted')


def test_a_folder_of_that_name_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'demo').symlink_to(loading.bundled())
    assert loading.locate('demo') == loading.bundled()
    assert loading.locate('./demo').absolute() == tmp_path / 'demo'
