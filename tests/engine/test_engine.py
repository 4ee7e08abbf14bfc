"""What an engine refuses, how it ends, and what a fault costs."""

import dataclasses
import signal
import threading
import time
from concurrent.futures import CancelledError

import jax
import numpy as np
import pytest

import vipllava_jax as vj
from tests.engine.pictures import picture, png
from tests.engine.random_questions import alone, expected
from vipllava_jax.engine.picture_worker import prepare
from vipllava_jax.engine.pictures import task_of
from vipllava_jax.engine.question import Question, QuestionError, QueueFull

SHORT = vj.GenerationSettings(max_new_tokens=4)
LONG = vj.GenerationSettings(max_new_tokens=300, min_new_tokens=300)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope='module')
def engine(start):
    with start() as engine:
        yield engine


def hold(engine, monkeypatch):
    """Stops the engine before its next turn, until the function that is returned is called."""
    going_on, turn = threading.Event(), engine._scheduler.turn
    monkeypatch.setattr(engine._scheduler, 'turn', lambda: going_on.wait(60) and turn())
    return going_on.set


def test_answers_are_those_of_generate(engine, small_model):
    sampled = vj.GenerationSettings(max_new_tokens=9, temperature=1.0, seed=3, num_return_sequences=2)
    asked = [
        Question('What?', settings=SHORT),
        Question('What is {mark}?', picture(), 'rectangle:9,9,40,30:red', settings=SHORT),
        Question('Why?', [picture(), picture(seed=1)], settings=sampled),
        Question(
            'Who?', settings=vj.GenerationSettings(max_new_tokens=9, repetition_penalty=1.3, logprobs=2)
        ),
    ]
    replies = [engine.submit(question) for question in asked * 2]
    for question, reply in zip(asked * 2, replies, strict=True):
        assert expected(reply.result(60)) == alone(small_model, question)[0]
    assert replies[0].result()[0].text == vj.answer(small_model, 'What?', settings=SHORT)
    assert engine.stats().compilations == 0


def test_pieces_are_read_while_they_arrive(engine):
    reply = engine.submit(Question('What?', settings=LONG))
    pieces = iter(reply)
    first = next(pieces)
    assert not reply.done
    (answer,) = reply.result(60)
    rest = [*pieces]
    assert (first.text + ''.join(piece.text for piece in rest)).strip() == answer.text
    assert first.ids + tuple(id for piece in rest for id in piece.ids) == answer.ids
    assert reply.times.submitted <= reply.times.started < reply.times.first_token < reply.times.finished


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'prompt': ' '}, 'the question is empty'),
        ({'prompt': 'What is {mark}?'}, 'mark'),
        ({'prompt': '<image> <image>', 'images': ['a.png']}, 'image'),
        ({'settings': vj.GenerationSettings(num_beams=2)}, 'num_beams is 2'),
        ({'settings': vj.GenerationSettings(max_new_tokens=500)}, 'context'),
        ({'settings': vj.GenerationSettings(suppress_tokens=[400])}, 'id 400'),
        ({'priority': 'high'}, "the priority is 'high': expected a whole number"),
        ({'priority': 1 << 40}, 'the priority is 1099511627776'),
        (
            {'settings': vj.GenerationSettings(temperature=1.0, num_return_sequences=5, max_new_tokens=9)},
            '5 answers are asked for, but the engine has 4 rows',
        ),
        ({'settings': vj.GenerationSettings(suppress_tokens=range(300))}, 'at most 256 entries'),
    ],
)
def test_what_can_never_be_answered_is_refused_at_once(engine, fields, message):
    before = engine.stats()
    with pytest.raises(QuestionError, match=message):
        engine.submit(Question(**{'prompt': 'What?', **fields}))
    after = engine.stats()
    assert (after.waiting, after.preparing, after.prompt_tokens) == (0, 0, before.prompt_tokens)


def test_what_is_no_question_is_a_type_error(engine):
    with pytest.raises(TypeError, match='expected a Question'):
        engine.submit('What?')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'rows': 0}, 'rows is 0'),
        ({'slots': 2}, 'slots is 2'),
        ({'long_rows': -1}, 'long_rows is -1'),
        ({'long_rows': {512: 'many'}}, r'long_rows\[512\] is .many.'),
        ({'prefix_bytes': -1}, 'prefix_bytes is -1'),
        ({'queue': 0}, 'queue is 0'),
        ({'max_pixels': 0}, 'max_pixels is 0'),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_starts(start, changes, message):
    threads = threading.active_count()
    with pytest.raises(ValueError, match=message):
        start(**changes)
    assert threading.active_count() == threads


def test_a_broken_picture_costs_its_question_alone(engine):
    broken = engine.submit(Question('What?', b'no picture', settings=SHORT))
    missing = engine.submit(Question('What?', ['/nowhere.png'], settings=SHORT))
    good = engine.submit(Question('What?', picture(), settings=SHORT))
    failed = engine.stats().failed
    with pytest.raises(QuestionError, match='not a picture in a known format'):
        broken.result(30)
    with pytest.raises(QuestionError, match='no picture at'):
        list(missing)
    assert good.result(30)
    assert engine.stats().failed - failed <= 2


def test_a_worker_that_is_killed_costs_its_question_alone(start):
    with start(workers=1) as engine:
        assert engine.submit(Question('What?', picture(), settings=SHORT)).result(60)
        (worker,) = engine._pictures.processes
        worker._process.send_signal(signal.SIGSTOP)  # as if it were busy
        lost, good = (engine.submit(Question('What?', picture(), settings=SHORT)) for _ in range(2))
        deadline = time.monotonic() + 30
        while not engine._preparing[lost].running() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.2)  # in which it is given the question
        worker._process.kill()
        with pytest.raises(QuestionError, match='ended unexpectedly'):
            lost.result(60)
        assert good.result(60)
        assert (engine.stats().failed, engine.stats().finished) == (1, 2)


def test_more_questions_than_rows_and_the_queue_hold_are_refused(start, monkeypatch):
    with start(queue=3) as engine:
        go_on = hold(engine, monkeypatch)
        replies = [engine.submit(Question(f'What is {n}?', settings=SHORT)) for n in range(6 + 3)]
        with pytest.raises(QueueFull, match='3 questions are waiting'):
            engine.submit(Question('One more?', picture(), settings=SHORT))
        replies[0].cancel()
        go_on()
        assert [len(reply.result(30)) for reply in replies[1:]] == [1] * 8
        assert engine.submit(Question('One more?', settings=SHORT)).result(30)


def test_draining_answers_what_is_open_and_accepts_nothing(start, monkeypatch):
    with start() as engine:
        go_on = hold(engine, monkeypatch)
        replies = [engine.submit(Question('What?', image, settings=SHORT)) for image in (None, picture())]
        assert not engine.drain(0.05)
        with pytest.raises(RuntimeError, match='draining'):
            engine.submit(Question('One more?', settings=SHORT))
        go_on()
        assert engine.drain(30)
        assert all(reply.done and not reply.error for reply in replies)


def test_a_drain_that_takes_too_long_is_ended_with_an_error(engine):
    late = TimeoutError('the server ends')
    replies = [engine.submit(Question('What?', image, settings=LONG)) for image in (None, picture())]
    engine.fail_open(late)
    for reply in replies:
        with pytest.raises(TimeoutError, match='the server ends'):
            reply.result(0)
    assert engine.submit(Question('What?', settings=SHORT)).result(30)
    assert engine.error is None


def test_urgent_questions_are_answered_first(start, monkeypatch):
    """Those of a lower number, and equal ones in the order of their arrival."""
    with start(rows=1, long_rows=0) as engine:
        go_on = hold(engine, monkeypatch)
        engine.submit(Question('What?', settings=SHORT))
        while engine._prepared:  # until the engine has taken it, and is stopped
            time.sleep(0.01)
        asked = [Question(f'What {n}?', settings=SHORT, priority=n) for n in (2, 0, 1, -3, 0, 1)]
        replies = [engine.submit(question) for question in asked]
        go_on()
        assert all(reply.result(60) for reply in replies)
    order = sorted(range(6), key=lambda n: replies[n].times.finished)
    assert order == [3, 1, 4, 2, 5, 0]


def test_a_reply_has_the_pictures_that_the_model_sees_if_asked_to_keep_them(engine, small_model):
    marked = Question('What is {mark}?', picture(), 'rectangle:9,9,40,30:red', settings=SHORT)
    kept = engine.submit(dataclasses.replace(marked, keep_images=True))
    left = engine.submit(marked)
    kept.result(30), left.result(30)
    prepared = prepare(task_of(marked), small_model.processor.image_settings)
    assert kept.images.dtype == np.uint8
    np.testing.assert_array_equal(kept.images, prepared.pixels)
    assert left.images is None


@pytest.mark.parametrize('workers', [0, 1])
def test_larger_pictures_than_allowed_are_refused(start, workers):
    with start(workers=workers, max_pixels=60 * 50) as engine:
        small, large = (Question('What?', png(picture((60, height))), settings=SHORT) for height in (50, 51))
        assert engine.submit(small).result(60)
        with pytest.raises(QuestionError, match='the image'):
            engine.submit(large).result(60)


def test_closing_ends_what_is_open(start):
    with start() as engine:
        replies = [engine.submit(Question(f'What is {n}?', settings=LONG)) for n in range(5)]
        replies += [
            engine.submit(Question('What?', picture((2000, 2000), n), settings=LONG)) for n in range(3)
        ]
        next(iter(replies[0]))
        begin = time.monotonic()
        engine.close()
        engine.close()
        assert time.monotonic() - begin < 10
    for reply in replies:
        with pytest.raises(CancelledError):
            reply.result(0)
    with pytest.raises(RuntimeError, match='closed'):
        engine.submit(Question('What?'))
    stats = engine.stats()
    assert stats.failed + stats.cancelled == 8
    assert not engine._thread.is_alive()


@pytest.mark.parametrize('name', ['prefill', 'step', 'put'])
def test_a_fault_in_the_thread_of_the_engine_fails_every_reply(start, monkeypatch, name):
    def broken(*args, **options):
        raise MemoryError('out of memory')

    with start() as engine:
        replies = [engine.submit(Question(f'What is {n}?', settings=LONG)) for n in range(4)]
        replies.append(engine.submit(Question('What?', picture(), settings=LONG)))
        next(iter(replies[0]))
        monkeypatch.setattr(engine._device, name, broken)
        if name != 'step':
            engine.submit(Question('The last one?', settings=SHORT))
            replies[0].cancel()
        for reply in replies[1:]:
            with pytest.raises(MemoryError, match='out of memory'):
                reply.result(30)
        assert str(engine.error) == 'out of memory'
        with pytest.raises(RuntimeError, match='the engine has failed: out of memory'):
            engine.submit(Question('What?'))
        assert engine.drain(10)
        assert engine.stats().failed >= 4


def test_weights_that_are_not_finite_fail_the_reply(small_model, start):
    broken = jax.tree.map(lambda x: x * float('nan'), small_model.params)
    with start(small_model._replace(params=broken)) as engine:
        for _ in range(2):
            with pytest.raises(ValueError, match='NaN'):
                engine.submit(Question('What?', settings=SHORT)).result(30)
        assert engine.stats().failed == 2


def test_more_pictures_than_are_read_at_once_cost_their_question_alone(start):
    question = Question('What?', [picture(seed=n) for n in range(9)], settings=SHORT)
    with start() as engine:
        try:
            found = expected(engine.submit(question).result(30))
        except QuestionError:
            assert engine.submit(Question('What?', settings=SHORT)).result(30)
        else:
            assert found[0].ids
