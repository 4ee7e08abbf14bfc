"""The fuzzing harness detects each type of fault."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.fuzz.explore import explore
from tests.fuzz.runner import Runner, load_saved
from tests.fuzz.targets import Target

OTHER = """
code = 'x = b"x" * (900 << 20); print(); input()'
other = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
other.stdout.readline()
"""


def valid(folder: Path) -> None:
    folder.mkdir()
    (folder / 'program').write_text('pass')


def read(folder: Path) -> None:
    """Runs the input as a Python program, which does what the package must never do."""
    program = (folder / 'program').read_text()
    modules = {module.__name__: module for module in (os, subprocess, sys, time, warnings)}
    exec(program, modules)


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
    inputs = lambda folder: st.sampled_from(['pass', '1 / 0']).map(lambda text: {'program': text.encode()})  # noqa: E731
    target, folder = Target(valid, inputs, read), tmp_path_factory.mktemp('runner')
    runner = Runner('harm', target, folder, limit=3, memory=640 << 20)
    yield runner
    runner.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('program', 'expected'),
    [
        ('raise ValueError("what is wrong, and where")', ''),
        ('open("/no/such/file")', ''),
        ('sys.exit(0)', ''),
        ('print("vipllava: the file is damaged", file=sys.stderr); sys.exit(2)', ''),
        ('1 / 0', 'ZeroDivisionError at'),
        ('raise ValueError("\\x1b[2J")', 'message has control characters'),
        ('warnings.warn("\\x1b[2J")', 'warning has control characters'),
        ('print("\\x1b[2J")', 'stdout has control characters'),
        ('os.write(2, b"\\x07")', 'stderr has control characters'),
        ('os.write(2, b"x" * 1000)', 'stderr has a line of 1000 characters'),
        ('print("Traceback (most recent call last):", file=sys.stderr)', 'stderr has a traceback'),
        ('sys.exit(1)', 'exit code 1'),
        ('sys.exit(2)', 'exit code 2 without a message'),
        ('x = bytearray(2 << 30)', 'MemoryError'),
        ('x = b"x" * (900 << 20)', 'more than 640 MiB of memory'),
        (OTHER, 'more than 640 MiB of memory'),
        ('os.abort()', 'ended by SIGABRT'),
        ('os.kill(os.getpid(), 11)', 'ended by SIGSEGV'),
        ('os._exit(3)', 'ended with exit code 3'),
        ('time.sleep(60)', 'no end after'),
        ('def f(): f()\nf()', 'RecursionError'),
        ('pass', ''),
    ],
)
def test_every_type_of_fault_is_detected(runner, program, expected):
    found = runner.fault({'program': program.encode()})
    assert found.startswith(expected) if expected else found == ''


def test_faults_are_found_once_and_kept_to_be_tried_again(runner, tmp_path):
    faults = explore(runner, seconds=60, inputs=30, keep=tmp_path)
    [fault] = faults.values()
    assert fault.description.startswith('harm: ZeroDivisionError')
    assert load_saved(fault.folder) == ('harm', {'program': b'1 / 0'})
    assert str(fault.folder) in str(fault)
