"""Many questions are asked a bounded number ahead, and each ends once, whatever happens to it."""

import threading
import time
from concurrent.futures import CancelledError

import pytest

from tests.asking.fakes import FakeEngine, text_of
from vipllava_jax.asking.many import ask_all, look_ahead
from vipllava_jax.engine.question import Question, QuestionError


def questions(count, read=None):
    for n in range(count):
        if read is not None:
            read.append(n)
        yield n, Question(f'{n}?')


def test_every_question_ends_once_and_few_are_read_ahead():
    read, found = [], []
    with FakeEngine(lambda question: time.sleep(1e-3) or text_of(question)) as engine:
        for ended in ask_all(engine, questions(500, read)):
            found += ended
            assert len(read) - len(found) <= look_ahead(engine) + 1
        assert engine.most <= look_ahead(engine)
    assert sorted((one.key, one.answer.text) for one in found) == [(n, f'{n}?') for n in range(500)]
    assert [one.key for one in found] != sorted(one.key for one in found)  # as they are complete


def test_a_full_queue_is_waited_for():
    with FakeEngine(queue=3) as engine:
        found = [one.key for ended in ask_all(engine, questions(50)) for one in ended]
        assert sorted(found) == [*range(50)]
        assert engine.most == 3
    with FakeEngine(queue=0) as engine:
        threading.Timer(0.1, lambda: setattr(engine, 'queue', 1)).start()
        assert [one.key for ended in ask_all(engine, questions(2)) for one in ended] == [0, 1]


def test_a_question_that_cannot_be_answered_ends_alone(monkeypatch):
    def fails(question):
        return QuestionError('no picture') if question.prompt in ('3?', '7?') else 'yes'

    with FakeEngine(fails) as engine:
        submit = engine.submit
        refused = QuestionError('the prompt is empty')

        def refusing(question):
            if question.prompt == '5?':
                raise refused
            return submit(question)

        monkeypatch.setattr(engine, 'submit', refusing)
        found = {one.key: one for ended in ask_all(engine, questions(10)) for one in ended}
    assert {n: str(one.error) for n, one in found.items() if one.error} == {
        **dict.fromkeys((3, 7), 'no picture'),
        5: 'the prompt is empty',
    }
    assert all((one.answer is None) == (one.error is not None) for one in found.values())
    assert len(found) == 10


@pytest.mark.parametrize(
    ('error', 'expected'),
    [(MemoryError('none left'), 'none left'), (CancelledError(), 'the engine was closed before it')],
)
def test_the_fault_of_an_engine_ends_all(error, expected):
    with FakeEngine(lambda question: error) as engine, pytest.raises(Exception, match=expected):
        next(ask_all(engine, questions(3)))


def test_what_is_not_answered_is_cancelled_when_the_iterator_is_closed():
    held, replies = threading.Event(), []

    def answer(question):
        return 'first' if question.prompt == '0?' else held.wait() and 'late'

    with FakeEngine(answer) as engine:
        submit = engine.submit
        engine.submit = lambda question: replies.append(reply := submit(question)) or reply
        engine.rng.randrange = lambda count: 0
        finished = ask_all(engine, questions(9))
        assert [one.key for one in next(finished)] == [0]
        finished.close()
        assert [reply.cancelled for reply in replies] == [False] + [True] * 8
        held.set()


def test_no_questions_need_no_answers():
    with FakeEngine() as engine:
        assert [*ask_all(engine, iter(()))] == []
