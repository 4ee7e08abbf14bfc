"""The progress of a run, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from vipllava_jax.training.progress import ConsoleProgress, RemainingTime, step_line

RECORD = {'step': 1, 'loss': 2.5, 'learning_rate': 2e-5, 'seconds': 0.5, 'tokens_per_second': 12345.6}


def output_of_run(terminal: bool, evaluated=()) -> str:
    progress = ConsoleProgress()
    progress.console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with progress:
        progress.rows_checked(512, 2048)
        progress.weights_loaded(10**9, 2 * 10**9, 'w')
        progress.run_started({'model': 'm', 'trains': 'all [of it]'}, 0, 25, 10)
        for step in range(1, 26):
            progress.step_done({**RECORD, 'step': step, **({'eval_loss': 0.5} if step in evaluated else {})})
        progress.note('done [here]')
    return progress.console.file.getvalue()


def test_a_log_file_has_few_lines(monkeypatch):
    lines = output_of_run(terminal=False).splitlines()
    assert lines[:2] == ['model   m', 'trains  all [of it]']
    assert [line.split()[1] for line in lines[2:6]] == ['1/25', '10/25', '20/25', '25/25']
    assert lines[6:] == ['done [here]']


def test_a_terminal_shows_one_line_that_is_not_redrawn_for_every_step():
    text = output_of_run(terminal=True)
    assert 'checked 512 of 2,048 rows' in text
    assert 'loaded 1.00 of 2.00 GB' in text
    assert all(f'step {step}/25' in text for step in (1, 25))
    assert sum(f'step {step}/25' in text for step in range(2, 25)) < 10


@pytest.mark.parametrize('terminal', [True, False])
def test_each_evaluation_has_a_permanent_line(terminal):
    lines = [
        line for line in output_of_run(terminal, evaluated=(7,)).splitlines() if 'held-out loss 0.5' in line
    ]
    assert 'step 7/25' in lines[0]


def test_a_line_has_the_numbers_of_the_step():
    line = step_line({**RECORD, 'mfu': 0.512, 'eval_loss': 1.25}, 100, 3725)
    for expected in (
        'step 1/100',
        'loss 2.5',
        'learning rate 2.00e-05',
        '12,346 tokens/s',
        'MFU 51.2%',
        '1:02:05 left',
    ):
        assert expected in line
    assert 'held-out loss 1.25' in line


def test_a_compiled_step_is_ignored_in_the_remaining_time():
    estimate = RemainingTime()
    compiled = {'step': 1, 'loss': 2.5, 'learning_rate': 2e-5, 'seconds': 90.0}
    assert estimate.update(9, compiled) is None
    assert 'tokens/s' not in step_line(compiled, 10, None)
    assert estimate.update(8, RECORD) == 4
    assert estimate.update(6, compiled) == 3
