"""Batches have few shapes, and answers are the same as when each question is asked separately."""

import dataclasses
import threading

import numpy as np
import pytest

import vipllava_jax as vj
from tests.makers import noise
from vipllava_jax.evaluation import evaluate
from vipllava_jax.evaluation.batches import THREADS, group_cases
from vipllava_jax.evaluation.cases import read_cases
from vipllava_jax.inputs.mark_syntax import parse_mark
from vipllava_jax.inputs.processor import Processor


def grouped(model, cases, **settings):
    return group_cases(cases, model.processor, model.cfg, **settings)


def answered(model, batches):
    """The answers of each batch, and the errors of its broken cases."""
    for prepared in batches.prepare_ahead(batches.batches):
        yield batches.answers(model.params, prepared), prepared.errors


def texts(model, cases, **settings):
    cases = grouped(model, cases, max_new_tokens=6, **settings)
    return {answer.number: answer.text for answers, _ in answered(model, cases) for answer in answers}


@pytest.mark.slow
def test_answers_are_those_of_each_question_alone(model, questions):
    cases = read_cases(questions)
    expected = {}
    for n, case in enumerate(cases.cases):
        images = [vj.draw(path, marks) for path, marks in zip(case.images, case.marks, strict=True)]
        batch = model.processor(case.turns[-1].text, images, fit='pad')
        out = vj.generate(model.params, batch, cfg=model.cfg, max_new_tokens=6)
        expected[n] = model.processor.decode(out)[0]
    assert len(set(expected.values())) > 4
    assert texts(model, cases, batch=4, fit='pad') == expected
    assert texts(model, cases, batch=9, fit='pad') == expected


def test_a_conversation_includes_its_earlier_turns(model):
    talk = [('human', 'What?'), ('gpt', 'A dog.'), ('human', 'Sure?'), ('gpt', 'yes')]
    cases = read_cases([{'conversations': [{'from': role, 'value': text} for role, text in talk]}])
    turns = [vj.Turn('user', 'What?'), vj.Turn('assistant', 'A dog.'), vj.Turn('user', 'Sure?')]
    out = vj.generate(model.params, model.processor(turns), cfg=model.cfg, max_new_tokens=6)
    assert texts(model, cases) == {0: model.processor.decode(out)[0]}


def test_batches_have_few_shapes_and_contain_every_case_once(model, questions):
    batches = grouped(model, read_cases(questions), batch=4)
    assert sorted(n for batch in batches.batches for n in batch.numbers) == [*range(9)]
    prepared = [batches.prepare(batch) for batch in batches.batches]
    assert [len(one.batch.tokens) for one in prepared] == [4, 4, 4]
    assert [len(one.numbers) for one in prepared] == [4, 4, 1]
    counts = np.concatenate([one.batch.image_counts[: len(one.numbers)] for one in prepared])
    assert counts.tolist() == sorted(counts)
    assert grouped(model, read_cases(questions), batch=50).batches[0].size == 9
    assert [batch.numbers for batch in batches.pending({*range(9)} - {batches.batches[1].numbers[2]})] == [
        batches.batches[1].numbers
    ]


def test_fit_and_length_default_to_those_of_the_task(model, tmp_path):
    noise(60, 40).save(tmp_path / 'a.png')
    rows = [
        {'image': 'a.png', 'question': 'What?', 'answer': 'x'},
        {'image': 'a.png', 'question_id': 1, 'text': 'What?'},
    ]
    cases = read_cases(rows, tmp_path)
    cfg = dataclasses.replace(model.cfg, text=dataclasses.replace(model.cfg.text, context=1200))
    defaults = group_cases(cases, model.processor, cfg)
    assert {(batch.fit, batch.max_new_tokens) for batch in defaults.batches} == {(None, 128), ('pad', 1024)}
    overridden = group_cases(cases, model.processor, cfg, fit='squash', max_new_tokens=7)
    assert [(batch.fit, batch.max_new_tokens, batch.numbers) for batch in overridden.batches] == [
        ('squash', 7, (0, 1))
    ]
    pixels = [batches.prepare(batches.batches[-1]).batch.images[0, 0] for batches in (defaults, overridden)]
    picture = tmp_path / 'a.png'
    for image, fit in zip(pixels, ('pad', 'squash'), strict=True):
        np.testing.assert_array_equal(image, model.processor('x', picture, fit=fit).images[0, 0])


def test_the_context_limits_the_length_of_an_answer(model):
    row = {'question': 'What? ' * 60, 'answer': 'x'}
    length = int(model.processor(row['question'].strip()).lengths[0])
    context = length + 5
    cfg = dataclasses.replace(model.cfg, text=dataclasses.replace(model.cfg.text, context=context))
    cases = read_cases([{**row, 'question': row['question'].strip()}])
    assert group_cases(cases, model.processor, cfg).batches[0].max_new_tokens == 5
    with pytest.raises(
        ValueError, match=f'row 0: a prompt of {length} tokens and 6 new ones exceed the context of {context}'
    ):
        group_cases(cases, model.processor, cfg, max_new_tokens=6)


def test_questions_that_exceed_the_context_are_reported_together_or_left_out(model):
    rows = [{'question': 'What? ' * count, 'answer': 'x'} for count in (900, 1, 2, 800, 3)]
    cases = read_cases(rows)
    with pytest.raises(
        ValueError, match=r'2 of 5 questions are broken:\nrow 0: a prompt .*\nrow 3: a prompt'
    ):
        group_cases(cases, model.processor, model.cfg)
    batches = group_cases(cases, model.processor, model.cfg, max_new_tokens=2, skip_broken=True)
    assert sorted(number for batch in batches.batches for number in batch.numbers) == [1, 2, 4]
    assert (batches.total, batches.left_out, len(batches.errors)) == (3, 2, 2)
    assert batches.pending({1, 2, 4}) == []
    calls = []
    result = evaluate(
        model, rows, max_new_tokens=2, skip_broken=True, progress=lambda *call: calls.append(call)
    )
    assert (result.scores, result.left_out) == ([('rows', 3, 0)], 2)
    assert calls == [(0, 3), (3, 3)]
    with pytest.raises(ValueError, match='2 of 2 questions are broken'):
        group_cases(read_cases([rows[0], rows[3]]), model.processor, model.cfg, skip_broken=True)
    for new in (512, 10**400):
        with pytest.raises(ValueError, match='max_new_tokens .* would exceed the 512 tokens'):
            group_cases(cases, model.processor, model.cfg, max_new_tokens=new, skip_broken=True)


@pytest.mark.slow
def test_a_damaged_picture_is_an_error_or_left_out(model, questions):
    cases = read_cases(questions)
    path = cases.cases[4].images[0]
    path.write_bytes(path.read_bytes()[:-400])
    batches = grouped(model, cases, batch=4, max_new_tokens=3)
    with pytest.raises(ValueError, match=r'rows.jsonl, line 5: .*4-0.png.* is damaged'):
        list(answered(model, batches))
    batches = dataclasses.replace(batches, skip_broken=True)
    results = list(answered(model, batches))
    assert sorted(answer.number for answers, _ in results for answer in answers) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [('line 5' in line) for _, errors in results for line in errors] == [True]
    alone = dataclasses.replace(batches, batches=(batches.batches[0]._replace(numbers=(4,)),))
    assert [answers for answers, _ in answered(model, alone)] == [[]]


def test_a_mark_that_the_crop_cuts_off_is_a_warning(model, tmp_path):
    noise(90, 30).save(tmp_path / 'a.png')
    row = {'image': 'a.png', 'marks': ['rectangle:2,2,9,20'], 'question': 'What?', 'answer': 'x'}
    warnings = []
    batches = grouped(
        model, read_cases([row], tmp_path), fit='crop', warn=lambda *call: warnings.append(call)
    )
    batches.prepare(batches.batches[0])
    assert [subject for subject, _ in warnings] == ['crop']
    assert 'row 0: the crop cuts off the mark rectangle' in warnings[0][1]
    assert str(parse_mark('rectangle:2,2,9,20')[1]) in warnings[0][1]


def test_a_batch_ends_when_stop_strings_have_ended_its_answers(model, monkeypatch):
    cases = read_cases([{'question': word, 'answer': 'x'} for word in ('What?', 'Who?', 'Why?')])
    full = texts(model, cases)
    stop = full[0][2:4]
    monkeypatch.setattr(Processor, 'stop_strings', lambda self, template: (stop,))
    batches = grouped(model, cases, max_new_tokens=400)
    ((answers, _),) = answered(model, batches)
    assert answers[0].text == full[0].split(stop)[0].strip()
    assert answers[0].finished


def test_pictures_are_loaded_ahead(model, questions, monkeypatch):
    batches = grouped(model, read_cases(questions), batch=2, max_new_tokens=1)
    started, threads = [], set()
    prepare = type(batches).prepare

    def recorded(self, batch):
        started.append(batch)
        threads.add(threading.current_thread())
        return prepare(self, batch)

    monkeypatch.setattr(type(batches), 'prepare', recorded)
    answers = answered(model, batches)
    next(answers)
    assert len(started) == min(len(batches.batches), THREADS + 1)
    assert threading.current_thread() not in threads
    answers.close()
