"""In any order of arrival, the answer to a question is the one that it gets alone."""

import time

import numpy as np
import pytest

import vipllava_jax as vj
from tests.compilations import compilations
from tests.engine.random_questions import alone, expected, random_question
from tests.makers import noise
from vipllava_jax.engine import admission
from vipllava_jax.engine.question import Question


@pytest.fixture(scope='module', autouse=True)
def sharing():
    """Rows share a prefix from 150 slots on that this saves; the default is for larger models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, 'ENOUGH_SAVED', 150)
        yield


@pytest.fixture(scope='module')
def engine(start):
    with start() as engine:
        yield engine


def questions(count, seed):
    rng = np.random.default_rng(seed)
    return [random_question(rng, 80) for _ in range(count)]


def ask(engine, asked, rng):
    """Submits questions with random pauses, of which most are short -> their replies."""
    found = []
    for question in asked:
        found.append(engine.submit(question))
        if rng.random() < 0.3:
            time.sleep(rng.exponential(0.03))
    return found


def check_orders(engine, catalogue, orders, count, seed=0):
    """Asks `count` questions of a catalogue in each of some random orders."""
    wanted = [expected(engine.submit(question).result(60)) for question in catalogue]
    for order in range(orders):
        rng = np.random.default_rng((seed, order))
        picked = rng.permutation(len(catalogue))[:count]
        found = ask(engine, [catalogue[n] for n in picked], rng)
        for n, reply in zip(picked, found, strict=True):
            assert expected(reply.result(120)) == wanted[n], f'order {order}: {catalogue[n]}'
    return wanted


def check_alone(model, catalogue, wanted):
    for question, answers in zip(catalogue, wanted, strict=True):
        assert alone(model, question)[0] == answers, question


@pytest.mark.slow
def test_answers_are_those_of_generate_and_of_a_lone_question_in_ten_orders(engine, small_model):
    catalogue = questions(60, seed=1)
    with compilations('') as compiled:
        wanted = check_orders(engine, catalogue, 10, 40)
        assert not compiled
    check_alone(small_model, catalogue, wanted)
    stats = engine.stats()
    assert (stats.compilations, stats.failed, stats.cancelled) == (0, 0, 0)
    assert stats.finished == 60 + 10 * 40
    assert stats.prefix_hits > 20
    assert stats.filled > 0.3


@pytest.mark.by_hand
@pytest.mark.timeout(4 * 3600)
def test_answers_are_those_of_a_lone_question_in_five_hundred_orders(engine, small_model):
    for seed in range(10):
        catalogue = questions(400, seed=100 + seed)
        wanted = check_orders(engine, catalogue, 50, 200, seed)
        check_alone(small_model, catalogue[:100], wanted[:100])
    assert engine.stats().compilations == 0


@pytest.mark.slow
def test_answers_that_outgrow_their_rows_are_moved_or_go_on_later(engine, small_model):
    """Of six, two are moved to wider rows, and the others wait for such a row with what they have."""
    settings = vj.GenerationSettings(max_new_tokens=60, min_new_tokens=60, temperature=1.0, logprobs=2)
    words = 'what is the old red sofa ' * 7
    catalogue = [
        Question(f'{words}{n}', settings=vj.GenerationSettings(**{**vars(settings), 'seed': n}))
        for n in range(6)
    ]
    replies = [engine.submit(question) for question in catalogue]
    for question, reply in zip(catalogue, replies, strict=True):
        (answer,) = reply.result(60)
        assert reply.prompt_tokens < engine.shapes.slots < reply.prompt_tokens + len(answer.ids)
        (wanted,), (report,) = alone(small_model, question)
        assert expected([answer]) == [wanted]
        check_report(answer, report)


@pytest.mark.slow
def test_log_probabilities_are_those_of_generate(engine, small_model):
    catalogue = [question for question in questions(60, seed=2) if question.settings.logprobs][:8]
    replies = [engine.submit(question) for question in catalogue]
    for question, reply in zip(catalogue, replies, strict=True):
        for answer, report in zip(reply.result(60), alone(small_model, question)[1], strict=True):
            check_report(answer, report)


def check_report(answer, report):
    """Compares what is reported of the tokens of an answer with what `generate` reports."""
    assert len(answer.logprobs) == len(answer.ids)
    k = len(answer.logprobs[0].top_ids)
    logprobs = [token.logprob for token in answer.logprobs]
    np.testing.assert_allclose(logprobs, report.logprobs, atol=1e-4)
    assert [token.top_ids for token in answer.logprobs] == [tuple(ids[:k]) for ids in report.top_ids.tolist()]
    likeliest = [token.top_logprobs for token in answer.logprobs]
    np.testing.assert_allclose(likeliest, report.top_logprobs[:, :k], atol=1e-4)


@pytest.mark.slow
def test_an_answer_that_runs_out_of_time_is_a_beginning_of_the_whole_one(engine):
    whole, timed = (vj.GenerationSettings(max_new_tokens=300, max_time=limit) for limit in (None, 0.05))
    (first,) = engine.submit(Question('What?', settings=whole)).result(60)
    (second,) = engine.submit(Question('What?', settings=timed)).result(60)
    assert (first.finish_reason, second.finish_reason) == ('length', 'time')
    assert second.ids == first.ids[: len(second.ids)]
    assert 0 < len(second.ids) < 300


@pytest.mark.slow
def test_many_questions_about_one_picture_share_its_prefix(engine, small_model, monkeypatch):
    """Their rows read the keys of the prefix once; those of other questions run beside them."""
    rng = np.random.default_rng(5)
    picture = noise(40, 30, seed=77)
    settings = vj.GenerationSettings(max_new_tokens=20)
    about = [Question(f'What is {word}?', picture, settings=settings) for word in 'abcdefghijkl']
    other = [Question(f'Why {word}?', settings=settings) for word in 'abcd']
    (before,) = engine.submit(about[0]).result(60)
    step, prefixes = engine._device.step, []
    monkeypatch.setattr(engine._device, 'step', lambda *args: prefixes.append(args[3]) or step(*args))
    replies = ask(engine, [*about[:6], *other, *about[6:]], rng)
    found = {reply.question.question: reply.result(60) for reply in replies}
    assert any(prefix is not None and prefix.members.sum() > 1 for prefix in prefixes)
    assert found[about[0]][0].ids == before.ids
    for question, answers in found.items():
        assert expected(answers) == alone(small_model, question)[0]
        assert bool(answers[0].cached_tokens) == bool(question.images)


@pytest.mark.slow
def test_a_long_question_about_a_known_picture_is_read_whole(engine, small_model):
    """Its beginning is stored, but does not fit a short row together with what follows."""
    beginning, settings = 'what is the old red sofa ' * 4, vj.GenerationSettings(max_new_tokens=9)
    picture = noise(40, 30, seed=78)
    for rest in ('?', 'dog ' * 30 + '?'):
        question = Question(f'{beginning} <image> {rest}', picture, settings=settings)
        reply = engine.submit(question)
        assert expected(reply.result(60)) == alone(small_model, question)[0]
    assert reply.prompt_tokens > engine.shapes.slots
