"""Progress displays, on a terminal and elsewhere."""

import re

import pytest

from vipllava_jax.cli import waiting


@pytest.fixture
def clock(monkeypatch):
    """A clock that only changes when it is set."""
    now = [100.0]
    monkeypatch.setattr(waiting.time, 'perf_counter', lambda: now[0])
    return now


def test_without_a_terminal_there_is_a_line_now_and_then(clock, capsys):
    with waiting.count_bar('answers') as progress:
        for at, done in [(100, 8), (110, 12), (131, 16), (140, 20), (150, 28)]:
            clock[0] = at
            progress(done, 28)
    assert capsys.readouterr().err == 'answers 16/28  0.3/s, 0:46 left\nanswers 28/28  0.4/s, 0:00 left\n'


def test_nothing_to_do_is_nothing_to_tell(capsys):
    with waiting.count_bar('answers') as progress:
        pass
    with waiting.count_bar('answers') as progress:
        progress(3, 3)
    assert capsys.readouterr().err == ''


def test_on_a_terminal_there_is_a_bar(clock, capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    with waiting.count_bar('answers') as progress:
        progress(8, 28)
        clock[0] = 104
        progress(16, 28)
    assert '2.0/s, 0:06 left' in capsys.readouterr().err


@pytest.mark.parametrize('columns', [40, 60, 80, 200])
def test_a_long_name_does_not_squeeze_the_figures(columns, capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setenv('COLUMNS', str(columns))
    with waiting.bytes_bar('loading a-model-with-a-long-name-\x1b]0;x') as progress:
        progress(int(1e9), int(14e9), 'language_model.model.layers.12.self_attn.\x1b[2J[red]q_proj.weight')
    shown = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', capsys.readouterr().err)
    lines = [line for line in shown.replace('\r', '\n').splitlines() if 'GB' in line]
    assert lines
    assert all('1.0/14.0 GB' in line and len(line) <= columns for line in lines)
    assert '\x1b' not in shown
