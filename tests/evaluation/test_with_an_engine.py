"""A real engine gives the answers of batches, and either completes what the other has begun."""

import json

import numpy as np
import pytest

import vipllava_jax as vj
from tests.evaluation.test_shared_pictures import interleaved
from tests.makers import noise
from vipllava_jax.answering.regions import RegionQuestions, answer_regions
from vipllava_jax.answering.replies import with_template_stops
from vipllava_jax.asking.regions import ask_about_regions
from vipllava_jax.cli.answer_reports import report_answer
from vipllava_jax.engine.engine import Engine
from vipllava_jax.evaluation import evaluate

pytestmark = pytest.mark.slow
NEW = {'max_new_tokens': 6}


@pytest.fixture(scope='module')
def engine(model):
    with Engine(model, rows=4, slots=512, long_rows=0, workers=1) as engine:
        yield engine


def test_answers_are_those_of_batches(engine, model, questions):
    for fit in (None, 'pad'):
        expected = evaluate(model, questions, engine=False, batch=4, fit=fit, **NEW)
        assert evaluate(model, questions, engine=engine, batch=4, fit=fit, **NEW) == expected
        assert len({record['answer'] for record in expected.answers}) > 4


def test_questions_about_one_picture_have_the_answers_of_batches(engine, model, tmp_path):
    for n in range(2):
        noise(40, 30, seed=n).save(tmp_path / f'{n}.png')
    rows = interleaved(np.random.default_rng(0))
    expected = evaluate(model, rows, images=tmp_path, engine=False, **NEW)
    assert evaluate(model, rows, images=tmp_path, engine=engine, **NEW) == expected


def test_what_an_engine_has_begun_batches_complete_and_the_other_way_round(
    engine, model, questions, tmp_path
):
    def stop(done, total):
        if done >= 3:
            raise KeyboardInterrupt

    expected = evaluate(model, questions, engine=False, batch=2, **NEW)
    for name, one, other in (('a.jsonl', engine, False), ('b.jsonl', False, engine)):
        path = tmp_path / name
        options = {'answers': path, 'batch': 2, **NEW}
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, questions, engine=one, progress=stop, **options)
        kept = path.read_bytes()
        assert 3 <= kept.count(b'\n') - 1 < 9
        assert evaluate(model, questions, engine=other, **options) == expected
        assert path.read_bytes().startswith(kept)
        numbers = [json.loads(line)['n'] for line in path.read_text().splitlines()[1:]]
        assert sorted(numbers) == [*range(9)]


def test_damaged_pictures_are_left_out_as_in_batches(engine, model, questions):
    damaged = questions.parent / '4-0.png'
    damaged.write_bytes(damaged.read_bytes()[:-400])
    options = {'skip_broken': True, **NEW}
    expected = evaluate(model, questions, engine=False, **options)
    assert (expected.left_out, len(expected.errors)) == (1, 1)
    assert evaluate(model, questions, engine=engine, **options) == expected
    with pytest.raises(ValueError, match='line 5: ') as raised:
        evaluate(model, questions, engine=engine, **NEW)
    assert str(raised.value) == expected.errors[0]


@pytest.mark.parametrize('logprobs', [None, 0, 3])
def test_regions_have_the_answers_of_batches_in_their_order(engine, model, logprobs):
    marks = [vj.Mark('ellipse', box=(n, 2 * n, 30 + n, 20 + n)) for n in range(11)]
    picture = noise(60, 50)
    questions = RegionQuestions.of(
        model.processor, 'What is {mark}?', picture, marks, mode='separate', fit='pad'
    )
    settings = vj.GenerationSettings(max_new_tokens=[4, 6, 6, *[5] * 8], logprobs=logprobs)
    settings = with_template_stops(settings, model.processor, 'vipllava')
    expected = [one for group in answer_regions(model, questions, settings) for one in group]
    found = [one for ordered in ask_about_regions(engine, questions, settings, range(11)) for one in ordered]
    assert [(one.index, one.text) for one in found] == [(one.index, one.text) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.reply.tokens == other.reply.tokens
        assert one.reply.finish_reason == other.reply.finish_reason
        assert logprobs_of(one) == pytest.approx(logprobs_of(other), abs=1e-5)
        report, expected_report = report_answer(one.reply, one.text), report_answer(other.reply, other.text)
        assert texts_and_ids(report) == texts_and_ids(expected_report)


def logprobs_of(one):
    generated = one.reply.generated()
    arrays = [values for values in (generated.logprobs, generated.top_logprobs) if values is not None]
    return np.concatenate([values.ravel() for values in arrays]) if arrays else np.zeros(0)


def texts_and_ids(report):
    """A report without its numbers."""
    if isinstance(report, dict):
        return {key: texts_and_ids(value) for key, value in report.items() if key != 'logprob'}
    return [*map(texts_and_ids, report)] if isinstance(report, list) else report


def test_nothing_is_compiled_after_the_start(engine):
    assert engine.stats().compilations == 0
