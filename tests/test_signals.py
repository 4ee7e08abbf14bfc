"""A signal ends the command immediately, by that signal, and leaves no partial files."""

import os
import signal
import subprocess
import sys

import pytest

from vipllava_jax import signals

WRITES = """
import os, sys, time
from pathlib import Path
from vipllava_jax import signals
from vipllava_jax.files import replacing
from vipllava_jax.folders import new_folder
signals.end_cleanly()
place = Path(sys.argv[1])
with new_folder(place / 'model', 0, lambda _: True, True) as model, replacing(place / 'table.json') as table:
    (model / 'weights').write_text('x')
    table.write_text('x')
    print('writing', flush=True)
    try:
        time.sleep(60)
    except BaseException:
        print('an exception came instead')
"""


def started(code: str, *args: object) -> subprocess.Popen:
    """Starts a process that runs the code, and waits until it reports that it is working."""
    process = subprocess.Popen(
        [sys.executable, '-c', code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()
    return process


@pytest.mark.parametrize('number', signals.ENDING)
def test_unfinished_files_are_removed_and_existing_ones_stay(tmp_path, number):
    (tmp_path / 'table.json').write_text('before')
    process = started(WRITES, tmp_path)
    assert len(os.listdir(tmp_path)) == 3
    process.send_signal(number)
    assert process.communicate() == (b'', b'')
    assert process.returncode == -number
    assert os.listdir(tmp_path) == ['table.json']
    assert (tmp_path / 'table.json').read_text() == 'before'


def test_an_ignored_signal_stays_ignored(tmp_path):
    ignoring = 'import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n'
    process = started(ignoring + WRITES.replace('60', '0.5'), tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 0
    assert sorted(os.listdir(tmp_path)) == ['model', 'table.json']


def test_a_block_may_ask_for_the_exception():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.raising_interrupts():
            os.kill(os.getpid(), signal.SIGINT)  # as in a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with signals.raising_interrupts(), pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_caught_signal_is_recorded_unless_it_is_ignored():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with signals.catch_signals() as signal_number:
            assert signal_number() == 0
            os.kill(os.getpid(), signal.SIGINT)
            assert signal_number() == signal.SIGINT
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the shell does for a job in the background
        with signals.catch_signals() as signal_number:
            os.kill(os.getpid(), signal.SIGINT)
            assert signal_number() == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal_number() == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
