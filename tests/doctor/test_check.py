"""What may block or crash runs in a separate process, and a time limit ends it."""

import subprocess
import sys
import time

import pytest

from vipllava_jax.doctor import check
from vipllava_jax.doctor.check import NoAnswer, Probe, ask, counted, failed, ok, output_of


@pytest.fixture
def script(monkeypatch):
    """Lets probes run a script instead of the module of probes."""
    start = subprocess.Popen

    def use(text):
        def popen(_, **options):
            return start([sys.executable, '-c', text], **options)

        monkeypatch.setattr(check.subprocess, 'Popen', popen)

    return use


def test_answers_are_read_in_order_and_other_lines_are_ignored(script):
    script('print("a library says hello"); print(1); print(\'{"a": 1}\'); print(\'{"b": 2}\')')
    with Probe('any') as probe:
        assert [probe.answer(20), probe.answer(20)] == [{'a': 1}, {'b': 2}]


def test_a_process_that_blocks_is_ended(script):
    script('import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)')
    begin = time.monotonic()
    with Probe('any') as probe, pytest.raises(NoAnswer, match='no answer within 0.5 s'):
        probe.answer(0.5)
    assert probe.process.poll() is not None
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('import sys; sys.exit(3)', 'ended with exit code 3'),
        ('import os, signal; os.kill(os.getpid(), signal.SIGSEGV)', 'ended by SIGSEGV'),
    ],
)
def test_a_process_that_ends_without_an_answer_says_how(script, text, message):
    script(text)
    with pytest.raises(NoAnswer, match=message):
        ask('any', seconds=20)


def test_what_is_found_is_shown_as_one_printable_line():
    found = failed('name', 'a\x1b[31m\nb' * 1000, '\x07' * 1000)
    assert found.found.isprintable()
    assert found.advice.isprintable()
    assert len(found.found) <= 400 + 8
    assert ok('name', 'x', rate=1).details == {'rate': 1}


def test_programs_that_fail_or_block_print_nothing():
    assert output_of([sys.executable, '-c', 'print(7)'], 20) == '7\n'
    assert output_of([sys.executable, '-c', 'import time; time.sleep(60)'], 0.3) is None
    assert output_of([sys.executable, '-c', 'raise SystemExit(1)'], 20) is None
    assert output_of(['no-such-program'], 20) is None


def test_equal_names_are_counted():
    assert [*counted(['a', 'b', 'a'])] == ['2 x a', 'b']
