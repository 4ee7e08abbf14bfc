"""The numbers of a run: kept up to the step that it goes on from, and shown by TensorBoard where it is."""

import contextlib
import json
import sys
import types

from vipllava_jax.training.metrics import Metrics


def write(folder, step, steps):
    with contextlib.closing(Metrics(folder, step)) as metrics:
        for n in steps:
            metrics.write({'step': n, 'loss': n / 3})
        metrics.sync()
    return [json.loads(line)['step'] for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_a_run_that_goes_on_tells_each_step_once(tmp_path):
    assert write(tmp_path, 0, range(1, 6)) == [1, 2, 3, 4, 5]
    assert write(tmp_path, 3, range(4, 7)) == [1, 2, 3, 4, 5, 6]


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    write(tmp_path, 0, range(1, 4))
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 4, "lo')
    assert write(tmp_path, 3, [4]) == [1, 2, 3, 4]


def test_numbers_come_back_as_they_were(tmp_path):
    write(tmp_path, 0, [1, 2])
    with contextlib.closing(Metrics(tmp_path, 1)) as metrics:
        assert metrics.records == [{'step': 1, 'loss': 1 / 3}]


def test_tensorboard_is_told_the_numbers_where_it_is_installed(tmp_path, monkeypatch):
    told = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            told.append((folder, purge_step))

        def add_scalar(self, *what):
            told.append(what)

    board = types.ModuleType('tensorboardX')
    board.SummaryWriter = SummaryWriter
    board.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, 'tensorboardX', board)
    write(tmp_path, 3, [4])
    assert told == [(str(tmp_path / 'tensorboard'), 4), ('loss', 4 / 3, 4)]
