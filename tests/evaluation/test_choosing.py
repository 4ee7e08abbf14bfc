"""An evaluation that chooses finds the likeliest option of each question, beside its answer."""

import dataclasses
import json

import pytest

import vipllava_jax as vj
from tests.data import test_vcr
from tests.makers import noise
from vipllava_jax.evaluation import evaluate
from vipllava_jax.evaluation.batches import group_cases
from vipllava_jax.evaluation.cases import read_cases

BOXES = [[4, 5, 20, 25], [0, 0, 9, 9], [10, 2, 30, 8], [3, 3, 30, 20]]


@pytest.fixture
def rows(tmp_path):
    """Rows of Visual7W with three and four boxes, and one of VCR."""
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta' / '1.json').write_text(json.dumps(test_vcr.META))
    found = [{**test_vcr.ROW, 'image': 'a.png'}]
    noise(40, 30).save(tmp_path / 'a.png')
    for n in range(2):
        noise(40, 30, seed=n).save(tmp_path / f'{n}.png')
        asked = {'id': f'v7w-{n}', 'question': 'Which is it?' + '?' * n}
        found.append({**asked, 'image': f'{n}.png', 'bboxes': BOXES[: n + 3], 'answer': BOXES[n]})
    return found


@pytest.mark.slow
def test_the_likeliest_options_are_those_of_choose_and_are_counted(model, rows, tmp_path):
    plain = evaluate(model, rows, images=tmp_path, max_new_tokens=2)
    result = evaluate(model, rows, images=tmp_path, max_new_tokens=2, choose=True)
    assert [[*score] for score in result.scores[::2]] == [[*score] for score in plain.scores]
    right = 0
    for case, record in zip(read_cases(rows, tmp_path).cases, result.answers, strict=True):
        image, (turn,) = vj.draw(case.images[0], case.marks[0]), case.turns
        options = 'ABCD'[: len(case.options)]
        chosen = vj.choose(model, turn.text, [*options], image, fit=case.task.fit)
        assert record['scores'] == pytest.approx(chosen.scores, abs=2e-4)
        assert record['choice'] == options[chosen.best]
        assert record['choice_right'] == (record['choice'] in case.accepted)
        right += record['choice_right'] and case.task.name == 'Visual7W'
        assert record.items() >= plain.answers[record['n']].items()
    names = ('VCR Q->A', 'VCR QA->R', 'Visual7W', 'VCR Q->AR')
    assert [score.group for score in result.scores[1::2]] == [f'{name}, chosen' for name in names]
    assert result.scores[5] == ('Visual7W, chosen', 2, right)
    assert [len(record['scores']) for record in result.answers] == [4, 4, 3, 4]


@pytest.mark.slow
def test_choosing_is_one_of_the_settings_and_can_be_resumed(model, rows, tmp_path, monkeypatch):
    path, rows = tmp_path / 'out.jsonl', rows[1:]
    settings = dict(images=tmp_path, max_new_tokens=2, answers=path)
    whole = evaluate(model, rows, **settings, choose=True)
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(kept[:2]) + kept[2][:-20])
    resumed = evaluate(model, rows, **settings, choose=True)
    assert resumed == whole
    assert evaluate(model._replace(params={}), rows, **settings, choose=True) == whole  # asks nothing
    with pytest.raises(ValueError, match='choose was True and is not given'):
        evaluate(model, rows, **settings)
    record = json.loads(kept[1])
    del record['choice']
    path.write_bytes(kept[0] + json.dumps(record).encode() + b'\n')
    with pytest.raises(ValueError, match='out.jsonl, line 2 is damaged: "choice" is missing'):
        evaluate(model, rows, **settings, choose=True)
    evaluate(model, rows, **settings, restart=True)
    with pytest.raises(ValueError, match='choose was not given and is True'):
        evaluate(model, rows, **settings, choose=True)


def test_questions_without_options_are_an_error_that_names_the_data_set(model, rows, tmp_path):
    unknown = model._replace(params=None)
    others = {
        'rows': {'id': 'x', 'question': 'What?', 'answer': 'y'},
        'ViP-Bench': {'question_id': 1, 'text': 'What?', 'image': '1.png'},
        'PointQA-LookTwice': {
            **{'id': 'pointQA_twice-1', 'image': '1.png', 'bboxes': BOXES[:1]},
            **{'general_question': 'How many?', 'answer': 2},
        },
    }
    for name, row in others.items():
        with pytest.raises(
            ValueError, match=f'row 3: the questions of {name} have no options to choose from'
        ):
            evaluate(unknown, [*rows, row], images=tmp_path, choose=True)


def test_a_question_whose_options_exceed_the_context_is_broken(model, rows, tmp_path):
    cases = read_cases(rows[1:2], tmp_path)
    prompt = model.processor.encode(cases.cases[0].turns, 1)
    text = dataclasses.replace(model.cfg.text, context=len(prompt) + 1)
    cfg = dataclasses.replace(model.cfg, text=text)
    assert group_cases(cases, model.processor, cfg, max_new_tokens=1).total == 1
    with pytest.raises(ValueError, match=r'row 0: a prompt of .* and \d new ones exceed the context'):
        group_cases(cases, model.processor, cfg, max_new_tokens=1, choose=True)
