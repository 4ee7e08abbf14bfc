"""`vipllava eval` in two joined processes: one table and one file; whatever ends one ends both."""

import json
import signal
import time

import pytest

from tests.cli.test_eval import SLOW_EVAL, lines
from tests.processes import run_processes, running_processes

MESH = ('--mesh', 'tensor=2,data=2')


@pytest.fixture
def command(folder, data):
    short = ('--max-new-tokens', '2', '--fit', 'pad')
    return ['eval', '--model', str(folder), '--data', str(data), '--output', 'out.jsonl', *short]


def slowly(command):
    """A script of the command that waits after every batch."""
    return f'import sys; sys.argv = {["vipllava", *command, *MESH, "--batch", "2"]}\n{SLOW_EVAL}'


def wait_for_lines(path, count, started):
    """Waits until a file has this many lines; the processes must not end before."""
    end = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b'\n') < count:
        for running in started:
            assert running.process.poll() is None, running.err
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_answer_as_one(vipllava, command, tmp_path):
    first, second = run_processes([*command, *MESH, '--json', 'table.json'])
    assert first.code == 0, first.err
    assert second.code == 0, second.err
    alone = vipllava(*command, '--output', 'alone.jsonl')
    assert (first.out, second.out) == (alone.out, '')
    assert 'vipllava: process 0 of 2, 2 local of 4 devices (cpu), joined at 127.0.0.1:' in first.err
    assert 'vipllava: process 1 of 2, 2 local of 4 devices\n' in second.err
    assert 'answers' not in second.err
    by_number = [
        sorted(lines(tmp_path / name)[1:], key=lambda answer: answer['n'])
        for name in ('out.jsonl', 'alone.jsonl')
    ]
    assert by_number[0] == by_number[1]
    assert json.loads((tmp_path / 'table.json').read_text())['answers'] == 20
    assert vipllava(*command).out == alone.out  # nothing is asked again


@pytest.mark.slow
def test_programs_are_kept_only_in_a_folder_that_all_processes_share(command, tmp_path):
    own = [{'VIPLLAVA_COMPILATION_CACHE': str(tmp_path / f'own-{n}')} for n in range(2)]
    first, second = run_processes(command, env=own)
    assert f'vipllava: {tmp_path}/own-0 is not the same folder for all processes: compiled' in first.err
    assert 'same folder' not in second.err
    shared = {'VIPLLAVA_COMPILATION_CACHE': str(tmp_path / 'shared')}
    first, second = run_processes(command, env=shared)
    assert 'same folder' not in first.err + second.err
    assert not [path for path in (tmp_path / 'shared').iterdir() if path.name.startswith('.seen')]


@pytest.mark.slow
def test_without_a_mesh_joined_processes_are_refused(command):
    first, second = run_processes(command)
    assert (first.code, second.code) == (2, 2)
    assert 'vipllava: 2 processes have joined, but without --mesh each would' in first.err
    assert '--mesh' not in second.err


@pytest.mark.slow
def test_different_options_are_refused(command):
    script = """
import os, sys
from vipllava_jax.cli import main
sys.argv = {} + ['--mesh', ('tensor=4', 'data=4')[int(os.environ['JAX_PROCESS_ID'])]]
main()
"""
    first, second = run_processes(script.format(['vipllava', *command]))
    assert (first.code, second.code, second.out) == (2, 2, '')
    assert '--mesh is tensor=4 in process 0, but data=4 in process 1' in first.err


@pytest.mark.slow
def test_an_error_in_one_process_ends_both(command, tmp_path):
    """Only process 0 opens the file of answers, which is of another type here."""
    (tmp_path / 'out.jsonl').write_text('notes\n')
    first, second = run_processes([*command, *MESH])
    assert (first.code, second.code) == (2, 2)
    assert first.err.splitlines()[-1].startswith('vipllava: out.jsonl is not a file of answers')
    assert 'Traceback' not in second.err
    assert (tmp_path / 'out.jsonl').read_text() == 'notes\n'


@pytest.mark.slow
def test_an_error_in_another_process_is_shown_by_the_first(command):
    script = """
import os, sys
from vipllava_jax.cli import main
arguments = {}
if os.environ['JAX_PROCESS_ID'] == '1':
    arguments[arguments.index('--data') + 1] = 'missing.jsonl'
sys.argv = arguments
main()
"""
    first, second = run_processes(script.format(['vipllava', *command, *MESH]))
    assert (first.code, second.code) == (2, 2)
    assert "vipllava: process 1: no data file 'missing.jsonl'" in first.err
    assert 'Traceback' not in second.err


@pytest.mark.slow
def test_broken_rows_are_listed_once(command, data):
    with data.open('a') as file:
        file.write('{"question": "What?"}\n{"question": "Who?"}\n')
    first, second = run_processes([*command, *MESH])
    assert (first.code, second.code) == (2, 2)
    assert first.err.count('line 22') == 1
    assert 'line 22' not in second.err


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, pytest.param(1, marks=pytest.mark.by_hand)])
def test_sigterm_to_one_ends_both_and_the_same_command_resumes(vipllava, command, tmp_path, index):
    path = tmp_path / 'out.jsonl'
    with running_processes(slowly(command)) as started:
        wait_for_lines(path, 5, started)
        started[index].process.send_signal(signal.SIGTERM)
        first, second = (running.finish(60) for running in started)
    assert (first.code, second.code) == (128 + signal.SIGTERM,) * 2
    assert 'vipllava: stopped by SIGTERM: the answers so far are in out.jsonl; the same command' in first.err
    assert 'stopped' not in second.err
    kept = path.read_bytes()
    assert 5 <= kept.count(b'\n') < 21
    assert kept.endswith(b'\n')
    first, second = run_processes([*command, *MESH, '--batch', '2'])
    assert (first.code, second.code) == (0, 0), first.err
    assert path.read_bytes().startswith(kept)
    assert first.out == vipllava(*command, '--output', 'alone.jsonl').out


@pytest.mark.slow
@pytest.mark.parametrize('index', [0, pytest.param(1, marks=pytest.mark.by_hand)])
def test_sigkill_of_one_ends_the_other_within_the_heartbeat(vipllava, command, tmp_path, index):
    path, heartbeat = tmp_path / 'out.jsonl', 10
    script = slowly([*command, '--heartbeat-timeout', str(heartbeat)])
    with running_processes(script) as started:
        wait_for_lines(path, 5, started)
        started[index].process.kill()
        killed = time.monotonic()
        left = started[1 - index].finish(heartbeat + 10)
        assert time.monotonic() - killed < heartbeat + 10
    assert left.code != 0
    assert 'Traceback (most recent call last)' not in left.err
    assert 'has lost the others' in left.err or 'another task died' in left.err
    kept = path.read_bytes()
    first, second = run_processes([*command, *MESH, '--batch', '2'])
    assert (first.code, second.code) == (0, 0), first.err
    complete = kept[: kept.rindex(b'\n') + 1]
    assert path.read_bytes().startswith(complete)
    assert first.out == vipllava(*command, '--output', 'alone.jsonl').out
