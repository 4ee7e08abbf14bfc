"""Sending requests at given times, and what is recorded of their answers."""

import numpy as np
import pytest

from tests.benchmark.engines import Engine
from vipllava_jax.benchmark.engine_load import Load, Timing, questions, send, send_in_turn
from vipllava_jax.benchmark.engine_requests import Request

PICTURE = np.zeros((28, 28, 3), np.uint8)


def asked(n, new=3):
    return questions(Request(f'w{i}', PICTURE, 600, new) for i in range(n))


def test_requests_become_questions():
    (question,) = questions([Request('w1 w2', PICTURE, 600, 7)])
    assert question.prompt == 'w1 w2'
    assert question.images[0] is PICTURE
    assert question.settings.max_new_tokens == 7
    assert question.template == 'plain'


def test_all_at_once_counts_from_the_first_request_to_the_last_answer():
    load = send(Engine(first=0.05, end=0.1), asked(4))
    assert 0.1 <= load.seconds < 0.5
    assert load.rate == pytest.approx(4 / load.seconds)
    for first, end, new in load.timings:
        assert 0.05 <= first < end
        assert 0.1 <= end <= load.seconds
        assert new == 3
    assert load.rows_in_use == 0.75
    assert load.cached_tokens == 400


def test_each_question_is_submitted_when_it_is_due():
    engine, due = Engine(), [0.05, 0.06, 0.15]
    load = send(engine, asked(3), due)
    gaps = [b - a for a, b in zip(engine.at, engine.at[1:], strict=False)]
    assert gaps[1] > 0.05
    assert load.seconds >= 0.15
    assert all(timing.end < 0.15 for timing in load.timings)  # counted from when each was due


def test_a_late_submission_is_part_of_the_time():
    load = send(Engine(first=0.0, end=0.01), asked(1), [-1.0])
    assert load.timings[0].first >= 1


def test_in_turn_the_next_waits_for_the_answer():
    engine = Engine(end=0.03)
    load = send_in_turn(engine, asked(3))
    assert all(b - a >= 0.03 for a, b in zip(engine.at, engine.at[1:], strict=False))
    assert len(load.timings) == 3
    assert load.seconds >= 0.09


def test_an_error_of_an_answer_is_raised():
    with pytest.raises(RuntimeError, match='no picture'):
        send(Engine(fault='no picture'), asked(2))


def test_an_answer_that_ends_early_is_an_error():
    with pytest.raises(ValueError, match='has 2 tokens, expected 3'):
        send(Engine(missing=1), asked(2))


def test_the_time_per_token_leaves_the_first_out():
    assert Timing(1.0, 3.0, 5).per_token == 0.5
    assert Timing(1.0, 3.0, 1).per_token is None
    assert Timing(None, 3.0, 5).per_token is None
    assert Load(2.0, (Timing(1, 2, 3),) * 10).rate == 5
