"""The progress bar of loading and converting: in a terminal or a notebook, and nowhere else."""

import re

import pytest

from vipllava_jax.progress_bar import progress_bar, shown_progress


@pytest.mark.parametrize('columns', [40, 60, 80, 200])
def test_a_long_name_does_not_hide_the_numbers(columns, capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setenv('COLUMNS', str(columns))
    with progress_bar('loading a-model-with-a-long-name-\x1b]0;x') as progress:
        progress(int(1e9), int(14e9), 'language_model.model.layers.12.self_attn.\x1b[2J[red]q_proj.weight')
    shown = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', capsys.readouterr().err)
    lines = [line for line in shown.replace('\r', '\n').splitlines() if 'GB' in line]
    assert lines
    assert all('1.0/14.0 GB' in line and len(line) <= columns for line in lines)
    assert '\x1b' not in shown


def test_without_a_terminal_nothing_is_shown(capfd):
    with progress_bar('loading') as progress:
        progress(1, 2, 'a')
    assert capfd.readouterr() == ('', '')


def test_progress_is_a_bar_or_nothing_or_a_function(capfd, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    calls = []
    for progress in (False, lambda *arguments: calls.append(arguments)):
        with shown_progress(progress, 'loading') as show:
            if show:
                show(1, 2, 'a')
    assert calls == [(1, 2, 'a')]
    assert capfd.readouterr() == ('', '')
    for progress in (None, True):
        with shown_progress(progress, 'loading') as show:
            show(int(1e9), int(2e9), 'a')
        assert '1.0/2.0 GB' in capfd.readouterr().err


@pytest.mark.parametrize('installed', [True, False])
def test_a_notebook_has_a_bar_if_it_has_widgets(installed, monkeypatch):
    import importlib.util

    from rich.console import Console

    from vipllava_jax.progress_bar import _interactive

    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: object() if installed else None)
    assert _interactive(Console(force_jupyter=True, force_terminal=False)) == installed
