"""Batches have few shapes, and answers are the same as when each question is asked separately."""

import dataclasses
import threading

import numpy as np
import pytest

import vipllava_jax as vj
from tests.makers import noise
from vipllava_jax.evaluation import evaluate
from vipllava_jax.evaluation.answering import THREADS, questions
from vipllava_jax.evaluation.cases import read
from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.processor import Processor


def asked(model, cases, **settings):
    return questions(cases, model.processor, model.cfg, **settings)


def texts(model, cases, **settings):
    made = asked(model, cases, max_new_tokens=6, **settings)
    return {one.number: one.text for said, _ in made.answer(model.params, made.batches) for one in said}


@pytest.mark.slow
def test_answers_are_those_of_each_question_alone(model, questions):
    cases = read(questions)
    expected = {}
    for n, case in enumerate(cases.cases):
        images = [vj.draw(path, marks) for path, marks in zip(case.images, case.marks, strict=True)]
        batch = model.processor(case.turns[-1].text, images, fit='pad')
        out = vj.generate(model.params, batch, cfg=model.cfg, max_new_tokens=6)
        expected[n] = model.processor.decode(out)[0]
    assert len(set(expected.values())) > 4
    assert texts(model, cases, batch=4, fit='pad') == expected
    assert texts(model, cases, batch=9, fit='pad') == expected


def test_a_conversation_is_asked_with_what_came_before(model):
    said = [('human', 'What?'), ('gpt', 'A dog.'), ('human', 'Sure?'), ('gpt', 'yes')]
    cases = read([{'conversations': [{'from': who, 'value': text} for who, text in said]}])
    turns = [vj.Turn('user', 'What?'), vj.Turn('assistant', 'A dog.'), vj.Turn('user', 'Sure?')]
    out = vj.generate(model.params, model.processor(turns), cfg=model.cfg, max_new_tokens=6)
    assert texts(model, cases) == {0: model.processor.decode(out)[0]}


def test_batches_have_few_shapes_and_every_case_once(model, questions):
    made = asked(model, read(questions), batch=4)
    assert sorted(n for batch in made.batches for n in batch.numbers) == [*range(9)]
    ready = [made.make(batch) for batch in made.batches]
    assert [len(one.batch.tokens) for one in ready] == [4, 4, 4]
    assert [len(one.numbers) for one in ready] == [4, 4, 1]
    counts = np.concatenate([one.batch.image_counts[: len(one.numbers)] for one in ready])
    assert counts.tolist() == sorted(counts)
    assert asked(model, read(questions), batch=50).batches[0].size == 9
    assert [batch.numbers for batch in made.pending({*range(9)} - {made.batches[1].numbers[2]})] == [
        made.batches[1].numbers
    ]


def test_each_task_has_its_fit_and_length_unless_told(model, tmp_path):
    noise(60, 40).save(tmp_path / 'a.png')
    rows = [
        {'image': 'a.png', 'question': 'What?', 'answer': 'x'},
        {'image': 'a.png', 'question_id': 1, 'text': 'What?'},
    ]
    cases = read(rows, tmp_path)
    cfg = dataclasses.replace(model.cfg, text=dataclasses.replace(model.cfg.text, context=1200))
    own = questions(cases, model.processor, cfg)
    assert {(batch.fit, batch.longest) for batch in own.batches} == {(None, 128), ('pad', 1024)}
    told = questions(cases, model.processor, cfg, fit='squash', max_new_tokens=7)
    assert [(batch.fit, batch.longest, batch.numbers) for batch in told.batches] == [('squash', 7, (0, 1))]
    pixels = [made.make(made.batches[-1]).batch.images[0, 0] for made in (own, told)]
    picture = tmp_path / 'a.png'
    for image, fit in zip(pixels, ('pad', 'squash'), strict=True):
        np.testing.assert_array_equal(image, model.processor('x', picture, fit=fit).images[0, 0])


def test_an_answer_is_as_long_as_the_context_allows(model):
    row = {'question': 'What? ' * 60, 'answer': 'x'}
    length = int(model.processor(row['question'].strip()).lengths[0])
    context = length + 5
    cfg = dataclasses.replace(model.cfg, text=dataclasses.replace(model.cfg.text, context=context))
    cases = read([{**row, 'question': row['question'].strip()}])
    assert questions(cases, model.processor, cfg).batches[0].longest == 5
    with pytest.raises(
        ValueError, match=f'row 0: a prompt of {length} tokens and 6 new exceed the {context}'
    ):
        questions(cases, model.processor, cfg, max_new_tokens=6)


def test_questions_that_do_not_fit_are_told_together_or_left_out(model):
    rows = [{'question': 'What? ' * count, 'answer': 'x'} for count in (900, 1, 2, 800, 3)]
    cases = read(rows)
    with pytest.raises(
        ValueError, match=r'2 of 5 questions are broken:\nrow 0: a prompt .*\nrow 3: a prompt'
    ):
        questions(cases, model.processor, model.cfg)
    made = questions(cases, model.processor, model.cfg, max_new_tokens=2, skip_broken=True)
    assert sorted(number for batch in made.batches for number in batch.numbers) == [1, 2, 4]
    assert (made.total, made.left_out, len(made.broken)) == (3, 2, 2)
    assert made.pending({1, 2, 4}) == []
    told = []
    result = evaluate(model, rows, max_new_tokens=2, skip_broken=True, progress=lambda *at: told.append(at))
    assert (result.scores, result.left_out) == ([('rows', 3, 0)], 2)
    assert told == [(0, 3), (3, 3)]
    with pytest.raises(ValueError, match='2 of 2 questions are broken'):
        questions(read([rows[0], rows[3]]), model.processor, model.cfg, skip_broken=True)
    for new in (512, 10**400):
        with pytest.raises(ValueError, match='max_new_tokens .* would exceed the 512 tokens'):
            questions(cases, model.processor, model.cfg, max_new_tokens=new, skip_broken=True)


def test_a_damaged_picture_is_told_or_left_out(model, questions):
    cases = read(questions)
    path = cases.cases[4].images[0]
    path.write_bytes(path.read_bytes()[:-400])
    made = asked(model, cases, batch=4, max_new_tokens=3)
    with pytest.raises(ValueError, match=r'rows.jsonl, line 5: .*4-0.png.* is damaged'):
        list(made.answer(model.params, made.batches))
    made = dataclasses.replace(made, skip_broken=True)
    answers = list(made.answer(model.params, made.batches))
    assert sorted(one.number for said, _ in answers for one in said) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [('line 5' in line) for _, broken in answers for line in broken] == [True]
    alone = dataclasses.replace(made, batches=(made.batches[0]._replace(numbers=(4,)),))
    assert [said for said, _ in alone.answer(model.params, alone.batches)] == [[]]


def test_a_mark_that_the_crop_cuts_off_is_noted(model, tmp_path):
    noise(90, 30).save(tmp_path / 'a.png')
    row = {'image': 'a.png', 'marks': ['rectangle:2,2,9,20'], 'question': 'What?', 'answer': 'x'}
    notes = []
    made = asked(model, read([row], tmp_path), fit='crop', note=lambda *told: notes.append(told))
    made.make(made.batches[0])
    assert [subject for subject, _ in notes] == ['crop']
    assert 'row 0: the crop cuts off the mark rectangle' in notes[0][1]
    assert str(parse_mark('rectangle:2,2,9,20')[1]) in notes[0][1]


def test_a_stop_string_ends_answers_and_all_of_them_the_batch(model, monkeypatch):
    cases = read([{'question': word, 'answer': 'x'} for word in ('What?', 'Who?', 'Why?')])
    whole = texts(model, cases)
    stop = whole[0][2:4]
    monkeypatch.setattr(Processor, 'stop_strings', lambda self, template: (stop,))
    made = asked(model, cases, max_new_tokens=400)
    (said,) = [said for said, _ in made.answer(model.params, made.batches)]
    assert said[0].text == whole[0].split(stop)[0].strip()
    assert said[0].finished


def test_pictures_are_loaded_ahead(model, questions, monkeypatch):
    made = asked(model, read(questions), batch=2, max_new_tokens=1)
    begun, threads = [], set()
    make = type(made).make

    def noted(self, batch):
        begun.append(batch)
        threads.add(threading.current_thread())
        return make(self, batch)

    monkeypatch.setattr(type(made), 'make', noted)
    answers = made.answer(model.params, made.batches)
    next(answers)
    assert len(begun) == min(len(made.batches), THREADS + 1)
    assert threading.current_thread() not in threads
    answers.close()
