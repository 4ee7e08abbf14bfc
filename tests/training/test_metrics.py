"""The numbers of a run: kept up to the step that it goes on from, and shown by TensorBoard where it is."""

import contextlib
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vipllava_jax.training import metrics


def write(folder, step, steps):
    with contextlib.closing(metrics.Metrics(folder, step)) as kept:
        for n in steps:
            kept.write({'step': n, 'loss': n / 3})
        kept.sync()
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
    with contextlib.closing(metrics.Metrics(tmp_path, 1)) as kept:
        assert kept.records == [{'step': 1, 'loss': 1 / 3}]


def test_tensorboard_shows_each_step_once(tmp_path):
    write(tmp_path, 0, range(1, 6))
    write(tmp_path, 3, [4])  # after a step that came before the last ones
    shown = EventAccumulator(str(tmp_path / 'tensorboard')).Reload().Scalars('loss')
    assert [event.step for event in shown] == [1, 2, 3, 4]
    assert [event.value for event in shown] == pytest.approx([n / 3 for n in range(1, 5)])


def test_without_tensorboard_nothing_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert write(tmp_path, 0, [1]) == [1]
    assert not (tmp_path / 'tensorboard').exists()
