"""The metrics of a run: kept up to the step from which it resumes, and readable by TensorBoard."""

import contextlib
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vipllava_jax.training import metrics_log


def write(folder, step, steps):
    with contextlib.closing(metrics_log.MetricsLog(folder, step)) as kept:
        for n in steps:
            kept.write({'step': n, 'loss': n / 3})
        kept.sync()
    return [json.loads(line)['step'] for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_a_resumed_run_has_each_step_once(tmp_path):
    assert write(tmp_path, 0, range(1, 6)) == [1, 2, 3, 4, 5]
    assert write(tmp_path, 3, range(4, 7)) == [1, 2, 3, 4, 5, 6]


def test_an_incomplete_line_is_dropped(tmp_path):
    write(tmp_path, 0, range(1, 4))
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 4, "lo')
    assert write(tmp_path, 3, [4]) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('junk', 'not JSON'),
        ('', 'not JSON'),
        ('\0\0\0', 'not JSON'),
        ('[' * 5000, 'not JSON'),
        ('[1]', r'found \[1\], expected an object'),
        ('{"loss": 1}', '"step" is None, expected the number of a step'),
        ('{"step": "2"}', '"step" is'),
        ('{"step": 2.5}', '"step" is 2.5'),
        ('{"step": true}', '"step" is True'),
        ('{"step": 0}', '"step" is 0'),
        ('{"step": 2, "loss": "x"}', '"loss" is'),
        ('{"step": 2, "eval_loss": null}', '"eval_loss" is None'),
        ('{"step": 2, "eval_loss": [1]}', '"eval_loss" is'),
        (f'{{"step": 2, "loss": {"8" * 400}}}', '"loss" is a whole number of 400 digits'),
    ],
)
def test_a_damaged_line_before_the_step_is_named_and_the_file_is_unchanged(tmp_path, line, message):
    write(tmp_path, 0, [1, 2, 3])
    path = tmp_path / 'metrics.jsonl'
    lines = path.read_text().splitlines()
    path.write_text('\n'.join([lines[0], line, lines[2], '']))
    before = path.read_text()
    with pytest.raises(
        ValueError, match=f'metrics.jsonl, line 2 is damaged: .*{message}.*remove it'
    ) as error:
        metrics_log.MetricsLog(tmp_path, 3)
    assert str(error.value).isprintable()
    assert path.read_text() == before
    assert write(tmp_path, 1, [2]) == [1, 2]  # later lines are ignored
    assert write(tmp_path, 0, [1]) == [1]


def test_a_full_disk_names_the_file(tmp_path):
    with contextlib.closing(metrics_log.MetricsLog(tmp_path, 0)) as kept:
        kept._file.close()
        kept._file = open('/dev/full', 'ab', buffering=0)  # noqa: SIM115
        with pytest.raises(OSError, match='No space left .*metrics.jsonl'):
            kept.write({'step': 1})


def test_records_are_read_unchanged(tmp_path):
    write(tmp_path, 0, [1, 2])
    with contextlib.closing(metrics_log.MetricsLog(tmp_path, 1)) as kept:
        assert kept.records == [{'step': 1, 'loss': 1 / 3}]


def test_tensorboard_shows_each_step_once(tmp_path):
    write(tmp_path, 0, range(1, 6))
    write(tmp_path, 3, [4])  # after a step that came before the last ones
    shown = EventAccumulator(str(tmp_path / 'tensorboard')).Reload().Scalars('loss')
    assert [event.step for event in shown] == [1, 2, 3, 4]
    assert [event.value for event in shown] == pytest.approx([n / 3 for n in range(1, 5)])


def test_a_full_disk_names_the_file_of_tensorboard(tmp_path):
    with contextlib.closing(metrics_log.TensorBoardFile(tmp_path, 0)) as shown:
        shown._file.close()
        shown._file = open('/dev/full', 'ab', buffering=0)  # noqa: SIM115
        with pytest.raises(OSError, match='No space left .*events.out.tfevents'):
            shown.write({'step': 1, 'loss': 2.0})


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert write(tmp_path, 0, [1]) == [1]
    assert not (tmp_path / 'tensorboard').exists()
