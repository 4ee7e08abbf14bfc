"""Lanes that use the cache of another one: answers are those of `generate`, and nothing is compiled later."""

import numpy as np
import pytest

import vipllava_jax as vj
from tests.engine.random_questions import WORDS, alone, expected, random_question
from tests.makers import noise
from vipllava_jax.engine import admission, memory
from vipllava_jax.engine.device import Device
from vipllava_jax.engine.question import Question

pytestmark = pytest.mark.slow
FEW, LARGEST, WIDE, HALVED = 1, 2, 3, 4  # lanes; the first uses the cache of WIDE, the last that of LARGEST


@pytest.fixture(scope='module')
def engine(start):
    """An engine with 9 rows of 256 slots, 4 of 512, which lend their cache to 8 of 256, and 18 of 128."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, 'ENOUGH_SAVED', 60)
        patch.setattr(memory, 'divides_caches', lambda devices: True)
        with start(rows=9, long_rows=4) as engine:
            assert engine.shapes.sizes == [(1, 256), (8, 256), (9, 256), (4, 512), (18, 128)]
            yield engine


@pytest.fixture
def steps(monkeypatch):
    """The lanes of every step, and the number of their rows."""
    found, step = [], Device.step

    def recorded(device, group, active, *args):
        found.append((tuple(group), sum(int(x.sum()) for x in active)))
        return step(device, group, active, *args)

    monkeypatch.setattr(Device, 'step', recorded)
    return found


def about(picture, rng, new):
    words = ' '.join(rng.choice(WORDS, rng.integers(1, 9)))
    chosen = {'temperature': float(rng.choice([0.0, 1.0])), 'seed': int(rng.integers(99))}
    settings = vj.GenerationSettings(max_new_tokens=new, eos=(2, 390), **chosen)
    return Question(words, [picture], settings=settings)


def check(engine, questions):
    """Asks all at once; the answers are those of `generate`."""
    found = [engine.submit(question) for question in questions]
    for question, reply in zip(questions, found, strict=True):
        assert expected(reply.result(60)) == alone(engine.model, question)[0]
    assert (engine.stats().compilations, engine.stats().failed) == (0, 0)


def test_many_questions_about_a_picture_have_more_rows_of_fewer_slots(engine, steps):
    rng, picture = np.random.default_rng(1), noise(40, 30, 11)
    check(engine, [about(picture, rng, 24) for _ in range(30)])
    assert max(count for group, count in steps if group == (HALVED,)) > 9
    assert WIDE not in {lane for group, _ in steps for lane in group}


def test_an_answer_too_long_for_fewer_slots_goes_on_in_another_row(engine, steps):
    rng, picture = np.random.default_rng(2), noise(40, 30, 12)
    check(engine, [about(picture, rng, 110) for _ in range(12)])
    assert {(HALVED,), (LARGEST,)} <= {group for group, _ in steps}


def test_a_question_about_another_picture_gets_a_row_while_many_come_about_one(engine, steps):
    rng, picture = np.random.default_rng(3), noise(40, 30, 13)
    questions = [about(picture, rng, 12) for _ in range(24)]
    others = [about(noise(40, 30, 20 + n), rng, 12) for n in range(8)]
    check(engine, [*questions, *others, *(about(picture, rng, 12) for _ in range(12))])


def test_few_answers_leave_the_cache_of_longer_rows_before_a_longer_one_comes(engine, steps):
    rng = np.random.default_rng(4)
    short = [about(noise(40, 30, 30 + n), rng, 60) for n in range(5)]
    words = ' '.join(rng.choice(WORDS, 70))
    settings = vj.GenerationSettings(max_new_tokens=20, eos=(2, 390))
    replies = [engine.submit(question) for question in short]
    while not any(group == (FEW,) for group, _ in steps):
        pass
    check(engine, [Question(words, [], settings=settings)])
    for question, reply in zip(short, replies, strict=True):
        assert expected(reply.result(60)) == alone(engine.model, question)[0]
    assert {(FEW,), (LARGEST, WIDE)} <= {group for group, _ in steps}


def test_random_questions(engine, steps):
    rng = np.random.default_rng(5)
    check(engine, [random_question(rng, 80) for _ in range(40)])
