"""Replies that are cancelled at any moment leave rows, queue and memory as they were."""

import contextlib
import gc
import threading
import time
from concurrent.futures import CancelledError

import jax
import numpy as np
import pytest

from tests.engine.random_questions import PICTURES, expected, random_question
from vipllava_jax.engine.prefix_store import prefix_bytes
from vipllava_jax.engine.question import Question

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope='module')
def engine(start):
    """An engine that keeps a few prefixes, so that some are dropped."""
    with start(prefix_bytes=400_000) as engine:
        yield engine


def wait_until_idle(engine):
    """Until the threads of the engine wait: one that has answered holds the question a little longer."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        engine._pictures.submit(Question('', PICTURES[:1])).result(60)  # after those that are being prepared
        with engine._changed:  # for which the engine's thread waits if nothing is left to do
            if engine._changed._waiters and not engine._open and engine._scheduler.is_idle:
                return
        time.sleep(0.01)
    raise AssertionError(f'the engine is still at work: {engine.stats()}')


def held(engine):
    """The number of arrays on the device beside those of stored prefixes, and their bytes."""
    wait_until_idle(engine)
    gc.collect()
    arrays = jax.live_arrays()
    prefixes = [*engine._store._found.values()]
    stored = sum(len(jax.tree.leaves((prefix.k, prefix.v))) for prefix in prefixes)
    size = sum(map(prefix_bytes, prefixes))
    assert engine._store.bytes == size <= engine._store.capacity
    return len(arrays) - stored, sum(x.nbytes for x in arrays) - size


def read_some(reply, count):
    """Reads pieces in a thread of its own, and cancels the reply there after some of them."""

    def read():
        with contextlib.suppress(CancelledError):
            for _, _piece in zip(range(count), reply, strict=False):
                pass
            reply.cancel()

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def ask_and_cancel(engine, questions, wanted, rng):
    """Asks all questions, cancels most replies at random moments, and checks the others."""
    kept, threads = [], []
    for n in rng.permutation(len(questions)):
        reply = engine.submit(questions[n])
        how = rng.integers(4)
        if how == 0:
            kept.append((n, reply))
        elif how == 1:
            reply.cancel()
        elif how == 2:
            threads.append(read_some(reply, rng.integers(1, 6)))
        else:
            threads.append(threading.Timer(rng.exponential(0.05), reply.cancel))
            threads[-1].start()
    for thread in threads:
        thread.join(60)
    for n, reply in kept:
        assert expected(reply.result(60)) == wanted[n]


def test_nothing_is_left_of_cancelled_replies(engine):
    rng = np.random.default_rng(0)
    questions = [random_question(rng, 80) for _ in range(40)]
    wanted = [expected(engine.submit(question).result(60)) for question in questions]
    before = held(engine)
    for _ in range(4):
        ask_and_cancel(engine, questions, wanted, rng)
        assert held(engine) == before
    stats = engine.stats()
    assert (stats.compilations, stats.failed) == (0, 0)
    assert stats.cancelled > 40
    assert stats.finished + stats.cancelled == 5 * 40
    assert not engine._open
    assert engine._scheduler.rows.free() == [rows for rows, _ in engine.shapes.levels]


def test_a_cancelled_reply_frees_its_rows_for_others(engine):
    rng = np.random.default_rng(1)
    while (question := random_question(rng)).settings.num_return_sequences < 2:
        pass
    first = engine.submit(question)
    first.cancel()
    first.cancel()
    with pytest.raises(CancelledError):
        first.result(10)
    assert len(engine.submit(question).result(30)) == 2
    wait_until_idle(engine)
