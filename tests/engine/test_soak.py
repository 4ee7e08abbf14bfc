"""Half an hour of questions: memory, file descriptors and programs do not become more."""

import contextlib
import gc
import os
import time
from collections import deque
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest

from tests.compilations import compilations
from tests.engine.random_questions import random_question
from tests.makers import noise
from vipllava_jax.engine.question import Question, QuestionError

MINUTES, SETTLING = 30, 5
OPEN = 40  # questions at once


def usage():
    """The resident memory of this process in bytes, and the number of its open files."""
    gc.collect()
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE'), len(os.listdir('/proc/self/fd'))


def work(engine, rng, seconds):
    """Keeps questions open, of which some are cancelled, broken, or about pictures never seen before."""
    end, replies = time.monotonic() + seconds, deque()
    while time.monotonic() < end:
        question = random_question(rng, 80)
        if rng.random() < 0.3:
            picture = noise(*map(int, rng.integers(20, 200, 2)), seed=int(rng.integers(1 << 30)))
            question = Question('What is it?', picture, settings=question.settings)
        elif rng.random() < 0.05:
            question = Question('What is it?', rng.bytes(100), settings=question.settings)
        replies.append(engine.submit(question))
        if rng.random() < 0.1:
            replies[rng.integers(len(replies))].cancel()
        while len(replies) > OPEN:
            wait_for(replies.popleft())
    for reply in replies:
        wait_for(reply)


def wait_for(reply):
    with contextlib.suppress(CancelledError, QuestionError):
        reply.result(60)


@pytest.mark.by_hand
@pytest.mark.timeout(3600)
def test_half_an_hour_of_questions_leaves_nothing_behind(start):
    rng = np.random.default_rng(0)
    with start(workers=1, prefix_bytes=1_000_000) as engine, compilations('') as compiled:
        work(engine, rng, SETTLING * 60)
        first, files = usage()
        for minute in range(SETTLING, MINUTES):
            work(engine, rng, 60)
            memory, now = usage()
            print(f'minute {minute + 1}: {memory / 1e6:.1f} MB, {now} files, {engine.stats()}')
            assert now == files
        assert memory < 1.02 * first
        assert compiled == []
        stats = engine.stats()
        assert (stats.compilations, stats.running, stats.waiting, stats.preparing) == (0, 0, 0, 0)
        assert stats.finished > 1000
