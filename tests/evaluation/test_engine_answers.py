"""An engine is asked the questions of the batches, and its answers are written as they are complete."""

import json

import numpy as np
import pytest

from tests.asking.fakes import FakeEngine, text_of
from tests.makers import noise
from vipllava_jax.engine.picture_worker import prepare
from vipllava_jax.engine.pictures import task_of
from vipllava_jax.engine.question import QuestionError, encode
from vipllava_jax.evaluation import evaluate
from vipllava_jax.evaluation.batches import group_cases
from vipllava_jax.evaluation.cases import read_cases
from vipllava_jax.evaluation.engine_answers import case_questions, engine_answers
from vipllava_jax.evaluation.engine_choice import check_engine

MARKS = (
    *('2/rectangle:-0.5,5,30.25,25:#0a141e:width=2.5:units=pixel', '1/mask:1,2,30,2,20,28:lime:alpha=77'),
    *('2/arrow:5,5,20,20+12,13:gold', '2/point:0.5,0.25', '1/ellipse:1,1,40.7,20:blue:units=pixel'),
)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def marked(tmp_path):
    """Rows about one or two pictures, with marks on either, some of which lie outside by rounding."""
    for n in range(4):
        noise(40, 30 + n, seed=n).save(tmp_path / f'{n}.png')
    talk = [('human', 'What?'), ('gpt', 'A dog.'), ('human', 'Sure?'), ('gpt', 'yes')]
    return [
        {'image': ['0.png', '1.png'], 'marks': [*MARKS], 'question': 'What is <bbox0>?', 'answer': 'x'},
        {'image': '2.png', 'question': 'What? ' * 20, 'answer': 'x'},
        {'image': '3.png', 'question_id': 7, 'text': 'Describe it.'},
        {'conversations': [{'from': role, 'value': text} for role, text in talk]},
        {'image': '2.png', 'marks': [MARKS[-1][2:]], 'question': 'What is <bbox0>?', 'answer': 'x'},
    ]


@pytest.mark.parametrize('template', ['vipllava', 'plain'])
def test_the_inputs_and_limits_of_an_engine_are_those_of_the_batches(model, marked, tmp_path, template):
    grouped = group_cases(
        read_cases(marked, tmp_path), model.processor, model.cfg, batch=2, template=template
    )
    asked = dict(case_questions(grouped, grouped.batches, ()))
    assert sorted(key.number for key in asked) == [*range(5)]
    for batch in grouped.batches:
        prepared = grouped.prepare(batch)
        for row, number in enumerate(prepared.numbers):
            question = asked[number, batch.fit]
            encoded = encode(question, model._replace(processor=grouped.processor))
            arrays = prepared.batch
            assert encoded.ids.tolist() == arrays.tokens[row, : arrays.lengths[row]].tolist()
            expected = grouped.settings(prepared.max_new_tokens)
            assert (encoded.settings.stop, encoded.limit) == (expected.stop, expected.max_new_tokens)
            assert encoded.settings.temperature == expected.temperature == 0
            if count := arrays.image_counts[row]:
                settings = grouped.processor.image_settings
                pictures = settings.normalize(prepare(task_of(question), settings).pixels)
                assert np.array_equal(pictures, arrays.images[row, :count])


def test_the_records_have_the_numbers_of_the_rows_and_the_order_of_the_file_that_of_the_answers(
    model, questions, tmp_path
):
    path, calls = tmp_path / 'answers.jsonl', []
    with FakeEngine(rows=1) as engine:
        options = {'answers': path, 'progress': lambda *now: calls.append(now), 'max_new_tokens': 5}
        result = evaluate(model._replace(params={}), questions, engine=engine, **options)
        assert not engine.closed  # it is the caller's
    assert [record['n'] for record in result.answers] == [*range(9)]
    for record, row in zip(result.answers, lines(questions), strict=True):
        assert record['id'] == row['id']
        assert record['answer'].endswith(record['question'])
        assert (record['right'], record['finished']) == (False, True)
    assert sorted(record['n'] for record in lines(path)[1:]) == [*range(9)]
    assert (calls[0], calls[-1]) == ((0, 9), (9, 9))
    assert calls == sorted(calls)
    assert evaluate(model._replace(params={}), questions, engine=None, **options) == result  # asks nothing


def test_only_missing_answers_are_asked_for_after_an_interruption(model, questions, tmp_path):
    path = tmp_path / 'answers.jsonl'
    options = {'answers': path, 'max_new_tokens': 5}

    def stop(done, total):
        if done >= 4:
            raise KeyboardInterrupt

    nothing = model._replace(params={})
    with FakeEngine() as engine, pytest.raises(KeyboardInterrupt):
        evaluate(nothing, questions, engine=engine, progress=stop, **options)
    kept = lines(path)
    assert len(kept) >= 5
    path.write_bytes(path.read_bytes() + b'{"n": 3, "id"')  # of a process that was killed
    with FakeEngine() as engine:
        result = evaluate(nothing, questions, engine=engine, **options)
        assert len(engine.asked) == 9 - len(kept) + 1
        whole = evaluate(nothing, questions, engine=engine, max_new_tokens=5)
    assert result == whole
    assert lines(path)[: len(kept)] == kept
    assert sorted(record['n'] for record in lines(path)[1:]) == [*range(9)]


def test_a_damaged_picture_is_an_error_or_left_out_in_the_words_of_the_batches(
    model, questions, tmp_path, monkeypatch
):
    damaged = questions.parent / '4-0.png'
    damaged.write_bytes(damaged.read_bytes()[:-400])
    monkeypatch.chdir(questions.parent)  # in which paths are relative
    grouped = group_cases(read_cases('rows.jsonl'), model.processor, model.cfg)
    (expected,) = [error for n in range(9) if (error := grouped.picture_error(n, None))]

    def answer(question):
        try:
            if question.images:
                prepare(task_of(question), grouped.processor.image_settings)
        except ValueError as error:
            return QuestionError(str(error))
        return text_of(question)

    options = {'answers': tmp_path / 'answers.jsonl', 'max_new_tokens': 5}
    nothing = model._replace(params={})
    with FakeEngine(answer) as engine:
        with pytest.raises(ValueError, match='line 5') as raised:
            evaluate(nothing, 'rows.jsonl', engine=engine, **options)
        assert str(raised.value) == expected
        result = evaluate(nothing, 'rows.jsonl', engine=engine, skip_broken=True, **options)
    assert (result.errors, result.left_out) == ([expected], 1)
    assert [record['n'] for record in result.answers] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_one_mark_that_the_crop_cuts_off_is_named(model, marked, tmp_path):
    noise(200, 40).save(tmp_path / 'wide.png')
    for row in marked[:2]:
        row.update({'image': 'wide.png', 'marks': ['ellipse:1,1,20,20:red'], 'question': 'What?'})
    warned = []
    cases = read_cases(marked[:2], tmp_path)
    grouped = group_cases(
        cases, model.processor, model.cfg, fit='crop', warn=lambda *told: warned.append(told)
    )
    with FakeEngine(warnings=('the crop cuts off a mark',)) as engine:
        assert len([*engine_answers(engine, grouped, grouped.batches, ())]) <= 2
    assert len(warned) == 1
    assert warned[0][0] == 'crop'
    assert 'the crop cuts off the mark ellipse:1,1,20,20:red: see --fit pad' in warned[0][1]


def test_an_engine_neither_chooses_nor_joins(model):
    rows = [{'question': 'Hello?', 'answer': 'x'}]
    with FakeEngine() as engine, pytest.raises(ValueError, match=r'leave out the engine \(--engine\), or'):
        evaluate(model, rows, engine=engine, choose=True)
    with pytest.raises(ValueError, match='joined answer in batches'):
        check_engine(True, True, False)
