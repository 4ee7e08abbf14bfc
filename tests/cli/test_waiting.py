"""Progress displays, on a terminal and elsewhere."""

import pytest

from vipllava_jax.cli import waiting


@pytest.fixture
def clock(monkeypatch):
    """A clock that only changes when it is set."""
    now = [100.0]
    monkeypatch.setattr(waiting.time, 'perf_counter', lambda: now[0])
    return now


def test_without_a_terminal_progress_is_a_line_every_half_minute(clock, capsys):
    with waiting.count_bar('answers') as progress:
        for at, done in [(100, 8), (110, 12), (131, 16), (140, 20), (150, 28)]:
            clock[0] = at
            progress(done, 28)
    assert capsys.readouterr().err == 'answers 16/28  0.3/s, 0:46 left\nanswers 28/28  0.4/s, 0:00 left\n'


def test_without_work_nothing_is_shown(capsys):
    with waiting.count_bar('answers') as progress:
        pass
    with waiting.count_bar('answers') as progress:
        progress(3, 3)
    assert capsys.readouterr().err == ''


def test_on_a_terminal_progress_is_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    with waiting.count_bar('answers') as progress:
        progress(8, 28)
        clock[0] = 104
        progress(16, 28)
    assert '2.0/s, 0:06 left' in capsys.readouterr().err
