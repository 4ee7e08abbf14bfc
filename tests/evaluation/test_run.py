"""Whole evaluations: asking, writing answers, resuming, counting."""

import json

import pytest

from vipllava_jax.evaluation import evaluate
from vipllava_jax.evaluation.run import write_vip_bench


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_right_answers_are_counted_by_field(model, questions):
    first = evaluate(model, questions, max_new_tokens=4)
    assert first.scores == [('rows', 9, 0)]
    assert (first.left_out, first.errors) == (0, [])
    rows = lines(questions)
    for row, answer in zip(rows, first.answers, strict=True):
        row['answer'] = [answer['answer'].upper(), 'y'] if row['type'] == 'a' else 'x'
    questions.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    again = evaluate(model, questions, max_new_tokens=4, by=['type'], together=['type'])
    assert again.scores == [('rows', 9, 5), ('type', 2, 1), ('type a', 5, 5), ('type b', 4, 0)]
    assert [answer['right'] for answer in again.answers] == [row['type'] == 'a' for row in rows]
    assert again.cut_off == sum(not answer['finished'] for answer in again.answers) > 0


@pytest.mark.slow
def test_an_interrupted_evaluation_resumes(model, questions, tmp_path):
    path, calls = tmp_path / 'answers.jsonl', []
    settings = dict(max_new_tokens=4, batch=2, answers=path, about={'model': 'm'})

    def stop(done, total):
        calls.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, questions, **settings, progress=stop)
    assert calls == [(0, 9), (2, 9), (4, 9)]
    kept = lines(path)
    assert len(kept) == 5
    resumed = evaluate(model, questions, **settings, progress=lambda *now: calls.append(now))
    assert calls[3:] == [(4, 9), (6, 9), (8, 9), (9, 9)]
    assert lines(path)[:5] == kept
    assert resumed == evaluate(model, questions, max_new_tokens=4, batch=2)
    assert evaluate(model._replace(params={}), questions, **settings) == resumed  # asks nothing
    with pytest.raises(ValueError, match='model was m and is n'):
        evaluate(model, questions, **{**settings, 'about': {'model': 'n'}})
    with pytest.raises(ValueError, match='max_new_tokens was 4 and is 5'):
        evaluate(model, questions, **{**settings, 'max_new_tokens': 5})
    other = {**settings, 'batch': 3}  # settings that may change
    assert evaluate(model, questions, **other) == resumed
    assert evaluate(model, questions, **other, restart=True).scores == resumed.scores


def test_rows_can_be_dicts(model):
    result = evaluate(model, [{'question': 'Hello?', 'answer': 'x'}], max_new_tokens=3)
    assert result.scores == [('rows', 1, 0)]
    (record,) = result.answers
    assert (record['n'], record['id'], record['question']) == (0, 'row 0', 'Hello?')


def test_broken_rows_and_pictures_are_counted(model, questions):
    (questions.parent / '4-0.png').write_bytes((questions.parent / '4-0.png').read_bytes()[:-400])
    with questions.open('a') as file:
        file.write('{"question": "What?"}\n')
    with pytest.raises(ValueError, match='1 of 10 rows are broken'):
        evaluate(model, questions)
    result = evaluate(model, questions, max_new_tokens=3, skip_broken=True)
    assert (result.left_out, result.scores) == (2, [('rows', 8, 0)])
    assert ['line 10' in result.errors[0], 'line 5' in result.errors[1]] == [True, True]


def test_vip_bench_answers_are_written_for_its_evaluator(model, questions, tmp_path):
    rows = [{'question_id': n, 'image': '1-0.png', 'text': f'What is {n}?'} for n in (3, 'x')]
    result = evaluate(model, rows, images=questions.parent, max_new_tokens=3)
    assert result.scores == []
    write_vip_bench(tmp_path / 'vip.json', result)
    answers = [answer['answer'] for answer in result.answers]
    assert json.loads((tmp_path / 'vip.json').read_text()) == {'v1_3': answers[0], 'v1_x': answers[1]}
    assert 'right' not in result.answers[0]
