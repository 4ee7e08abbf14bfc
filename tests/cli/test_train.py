"""`vipllava train` as a user runs it: killed, resumed, stopped, refused."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.training import runs
from vipllava_jax import checkpoint
from vipllava_jax.arrays import flat
from vipllava_jax.training.settings import KEYS

STEPS = 60
SHARE = 'XLA_PYTHON_CLIENT_MEM_FRACTION'


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp('world'))


@pytest.fixture(scope='module')
def command(world):
    """Starts the command in a separate process."""
    model, folder = world

    def start(output, *flags, sigint=signal.SIG_DFL):
        keys = dict(recipe='finetune', model=model, data=folder / 'rows.jsonl', output=output, batch=4)
        keys |= dict(accumulate=2, steps=STEPS, learning_rate=1e-3, save_every=4, workers=0)
        keys |= dict(eval_data=folder / 'held.jsonl', eval_every=10)
        given = [word for name, value in keys.items() for word in (f'--{name.replace("_", "-")}', str(value))]
        before = signal.signal(signal.SIGINT, sigint)  # which the process inherits if it is to ignore it
        try:
            return subprocess.Popen(
                [sys.executable, '-m', 'vipllava_jax', 'train', *given, *flags],
                stderr=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    return start


@pytest.fixture(scope='module')
def uninterrupted(command, tmp_path_factory):
    """A run without interruption."""
    output = tmp_path_factory.mktemp('uninterrupted') / 'run'
    out, err = command(output).communicate()
    assert out == f'{output}/model\n', err
    return output


def lines(output):
    try:
        return (output / 'metrics.jsonl').read_bytes().count(b'\n')
    except FileNotFoundError:
        return 0


def names(output):
    return [path.name for path in (output / 'checkpoints').glob('*')]


def saving(output):
    return not all(name.isdecimal() for name in names(output))


def newest(output):
    return max((int(name) for name in names(output) if name.isdecimal()), default=0)


def until(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.0005)


def params(output):
    return dict(flat(checkpoint.restore(output / 'model')[0]))


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_resumes_exactly(command, uninterrupted, tmp_path):
    output, kills = tmp_path / 'run', []
    for while_saving in (True, False, True):
        process, saved_step = command(output), newest(output)
        # until a new checkpoint, because otherwise the run would make no progress
        until(process, lambda saved_step=saved_step: newest(output) > saved_step)
        later = time.monotonic() + random.uniform(0, 0.5)
        until(process, lambda at=later, then=while_saving: saving(output) if then else time.monotonic() > at)
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            kills.append((lines(output), saving(output)))
    out, err = command(output).communicate()
    assert out == f'{output}/model\n', err
    assert len(kills) >= 3, kills
    assert any(during for _, during in kills), kills
    assert [record['step'] for record in runs.metrics(output)] == [*range(1, STEPS + 1)]
    assert runs.metrics(output) == runs.metrics(uninterrupted), kills
    assert not saving(output)
    for path, w in params(uninterrupted).items():
        np.testing.assert_array_equal(w, params(output)[path])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'code'),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.by_hand)],
)
def test_a_signal_saves_a_checkpoint_and_the_same_command_resumes(
    command, uninterrupted, tmp_path, number, code
):
    output = tmp_path / 'run'
    process = command(output, '--workers', '1')
    while lines(output) < 6:
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (code, ''), err
    match = re.search(rf'stopped after step (\d+), saved as ({output}/checkpoints/\1)', err)
    assert match, err
    assert os.path.isdir(match[2])
    assert lines(output) == int(match[1])
    out, err = command(output).communicate()
    assert f'of which {match[1]} are done' in err
    assert runs.metrics(output) == runs.metrics(uninterrupted)
    out, err = command(output).communicate()
    assert (out, lines(output)) == (f'{output}/model\n', STEPS)


@pytest.mark.by_hand
def test_a_run_in_the_background_ignores_ctrl_c(command, uninterrupted, tmp_path):
    output = tmp_path / 'run'
    process = command(output, sigint=signal.SIG_IGN)  # as a shell starts a job in the background
    until(process, lambda: lines(output) >= 6)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (0, f'{output}/model\n'), err
    assert runs.metrics(output) == runs.metrics(uninterrupted)


@pytest.fixture
def quick(world, tmp_path, monkeypatch):
    """The flags of a run of one step, with FILE as the rows; the environment is restored."""
    monkeypatch.setenv(SHARE, '')
    monkeypatch.delenv(SHARE)
    model, folder = world
    given = dict(recipe='projector', model=model, output=tmp_path / 'run', batch=2, steps=1, workers=0)
    return ['train', *(word for name, value in given.items() for word in (f'--{name}', value))], folder


@pytest.mark.slow
def test_a_file_and_flags_are_equivalent(vipllava, quick, tmp_path):
    flags, folder = quick
    file = tmp_path / 'run.toml'
    file.write_text(f'data = "{folder}/rows.jsonl"\nlearning_rate = 1e-3\nseed = 5\nsteps = 7\n')
    ran = vipllava(*flags, file)
    assert (ran.code, ran.out) == (0, f'{tmp_path}/run/model\n'), ran.err
    for expected in ('trains    projector', 'rows, none broken', 'steps     1', 'step 1/1  loss'):
        assert expected in ran.err
    settings = json.loads((tmp_path / 'run' / 'run.json').read_text())['settings']
    assert (settings['seed'], settings['learning_rate'], settings['steps']) == (5, 1e-3, 1)
    assert os.environ[SHARE] == '0.95'
    assert vipllava('ask', '--model', ran.out.strip(), '--max-new-tokens', 4, 'What?').code == 0


def test_each_broken_row_has_a_line(vipllava, quick, tmp_path):
    flags, folder = quick
    lines = (folder / 'rows.jsonl').read_text().replace('1.png', 'x.png').replace('2.png', 'y.png')
    (tmp_path / 'rows.jsonl').write_text(lines)
    ran = vipllava(*flags, '--data', tmp_path / 'rows.jsonl', '--images', folder)
    assert (ran.code, ran.out) == (2, '')
    errors = ran.err.splitlines()
    assert len(errors) == 4
    assert 'line 2' in errors[1]
    assert 'line 3' in errors[2]
    assert errors[3].startswith('vipllava: ')


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (['--learning-rat', '1'], '--learning-rate'),
        (['--batch', '0'], 'batch is 0'),
        (['none.toml'], 'none.toml: cannot be read'),
        (['--trains', 'clip'], "'clip' is not one of"),
        (['--data', 'none.json'], 'none.json'),
        ([], 'data: must be given'),
        (['--data', ''], "'--data': empty"),
        (['--data', 'ROWS', '--model', ''], "'--model': empty"),
        (['--data', 'ROWS', '--images', ''], "'--images': empty"),
        (['--data', 'ROWS', '--seed', '9' * 30], 'seed is 999'),
        (['--data', 'ROWS', '--steps', '9' * 5000], '--steps'),
        (['--data', 'ROWS', '--workers', '1000000'], 'workers is 1000000'),
        (['--data', 'ROWS', '--learning-rate', 'nan'], 'learning_rate is nan'),
        (['--data', 'ROWS', '--template', 'checkpoint'], 'checkpoint'),
        (['--data', 'ROWS', '--recipe', 'lora', '--lora-dropout', '1'], 'lora_dropout'),
        (['--data', 'ROWS', '--trains', 'lora', '--trains', 'llama'], 'trains llama and lora'),
    ],
)
def test_errors_are_one_line(vipllava, quick, args, message):
    flags, folder = quick
    ran = vipllava(*flags, *[folder / 'rows.jsonl' if word == 'ROWS' else word for word in args])
    assert (ran.code, ran.out) == (2, ''), ran.err
    assert message in ran.err
    assert ran.err.count('\n') == 1


def test_the_help_has_every_key_in_its_group(vipllava):
    out = vipllava('train', '--help').out
    for name, key in KEYS.items():
        assert f'--{name.replace("_", "-")} ' in out
        assert f'\n{key.group}:\n' in out
