"""Training in several processes: the numbers of one, an end of all together, and a restart."""

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import run_processes, running_processes
from tests.training import runs
from vipllava_jax import training

pytestmark = pytest.mark.slow
HEARTBEAT = 10  # seconds


def command(keys, **more):
    """The arguments of `vipllava train` with these settings."""
    found = ['train', '--heartbeat-timeout', HEARTBEAT]
    for name, value in {**keys, 'steps': 5, **more}.items():
        found += [f'--{name.replace("_", "-")}', value]
    return [str(word) for word in found]


def killed(keys, who, number, steps, lines=3):
    """Starts processes, sends a signal to one of them after some steps -> what they left behind, seconds."""
    metrics, end = keys['output'] / 'metrics.jsonl', time.monotonic() + 120
    with running_processes(command(keys, steps=steps, save_every=2)) as started:
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= lines):
            assert time.monotonic() < end, started[0].err
            time.sleep(0.1)
        sent = time.monotonic()
        started[who].process.send_signal(number)
        return [running.finish(60) for running in started], time.monotonic() - sent


def test_two_processes_train_as_one(world, keys, tmp_path):
    more = dict(recipe='finetune', eval_data=world[1] / 'held.jsonl', eval_every=2, accumulate=2, batch=8)
    first, other = run_processes(command({**keys, **more}))
    assert (first.code, other.code) == (0, 0), first.err + other.err
    assert first.out == f'{keys["output"] / "model"}\n'
    assert 'on 4 x cpu (fsdp=4, 2 processes)' in first.err
    assert other.out == ''
    assert 'loss' not in other.err
    alone = {**keys, **more, 'output': tmp_path / 'alone', 'steps': 5}
    training.train(**alone)
    a, b = runs.metrics(keys['output']), runs.metrics(alone['output'])
    assert [record['step'] for record in a] == [1, 2, 3, 4, 5]
    for name in ('loss', 'grad_norm', 'tokens', 'target_tokens'):
        np.testing.assert_allclose(
            [record[name] for record in a], [record[name] for record in b], rtol=1e-5, err_msg=name
        )
    assert [record.get('eval_loss') for record in a] == [
        x if x is None else pytest.approx(x, rel=1e-5) for x in (record.get('eval_loss') for record in b)
    ]
    one, several = (runs.leaves(run / 'model') for run in (alone['output'], keys['output']))
    for path, w in one.items():
        np.testing.assert_allclose(w, several[path], atol=2e-5, err_msg=path)
    # the run of two processes goes on in one, without a mesh
    assert training.train(**{**keys, **more, 'steps': 6}, resume_anyway=True).step == 6


@pytest.mark.by_hand
def test_an_adapter_is_exported_by_the_first_process(world, keys, tmp_path):
    more = dict(recipe='lora', lora_rank=2, mesh='data=2,tensor=2', quantize='int8')
    first, other = run_processes(command({**keys, **more}))
    assert (first.code, other.code) == (0, 0), first.err + other.err
    alone = {**keys, **more, 'output': tmp_path / 'alone', 'steps': 5, 'mesh': None}
    training.train(**alone)
    losses = [[record['loss'] for record in runs.metrics(run)] for run in (keys['output'], alone['output'])]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    names = {path.name for path in (keys['output'] / 'adapter').iterdir()}
    assert names == {path.name for path in (alone['output'] / 'adapter').iterdir()}


def test_a_signal_to_one_process_ends_all_with_a_checkpoint(keys):
    finished, seconds = killed(keys, 1, signal.SIGTERM, 2000)
    assert [each.code for each in finished] == [143, 143], finished[0].err
    assert seconds < HEARTBEAT
    (line,) = [line for line in finished[0].err.splitlines() if 'stopped after step' in line]
    step = int(line.split('step ')[1].split(',')[0])
    assert (keys['output'] / 'checkpoints' / str(step)).is_dir()
    assert len(runs.metrics(keys['output'])) == step
    assert 'stopped' not in finished[1].err


@pytest.mark.parametrize('who', [1, pytest.param(0, marks=pytest.mark.by_hand)])
def test_the_death_of_a_process_ends_the_others_and_the_run_is_resumed(keys, who):
    finished, seconds = killed(keys, who, signal.SIGKILL, 50, lines=6)
    assert seconds < HEARTBEAT + 10
    assert finished[who].code == -signal.SIGKILL
    assert finished[1 - who].code not in (0, -signal.SIGKILL)
    assert 'Traceback' not in finished[1 - who].err
    first, other = run_processes(command(keys, steps=50, save_every=2))
    assert (first.code, other.code) == (0, 0), first.err + other.err
    assert 'of which' in first.err
    assert [record['step'] for record in runs.metrics(keys['output'])] == [*range(1, 51)]


@pytest.mark.by_hand
def test_a_damaged_picture_in_one_process_ends_all_and_loses_no_step(world, keys, tmp_path):
    lines = (world[1] / 'rows.jsonl').read_text().splitlines()
    (tmp_path / 'cut.png').write_bytes((world[1] / '5.png').read_bytes()[:300])
    broken = tmp_path / 'broken.jsonl'
    broken.write_text('\n'.join([*lines[:5], lines[5].replace('5.png', f'{tmp_path}/cut.png'), *lines[6:]]))
    keys |= dict(data=broken, images=world[1], seed=1, steps=8)
    first, other = run_processes(command(keys))
    assert (first.code, other.code) == (2, 2), first.err + other.err
    assert 'cut.png' in first.err + other.err
    done = len(runs.metrics(keys['output']))
    assert (keys['output'] / 'checkpoints' / str(done)).is_dir() or not done
    skipping = [*command(keys), '--skip-broken', '--resume-anyway']
    first, other = run_processes(skipping)
    assert (first.code, other.code) == (0, 0), first.err + other.err
    assert 'without its targets: ' in first.err + other.err


def test_other_settings_in_one_process_are_an_error_in_all(keys):
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in keys.items()}
    code = (
        'from vipllava_jax import pods, training; pods.join(timeout=60); '
        f'training.train(**{settings}, seed=pods.process_index())'
    )
    finished = run_processes(code)
    assert all(
        'process 1: the settings or rows differ from those of process 0' in each.err for each in finished
    )
    assert not (keys['output'] / 'checkpoints').exists()


def test_an_error_in_all_processes_is_shown_by_the_first(keys, tmp_path):
    rows = tmp_path / 'rows.jsonl'
    rows.write_text('{}\n{}\n')
    first, other = run_processes(command({**keys, 'data': rows}))
    assert (first.code, other.code) == (2, 2), first.err + other.err
    assert 'rows.jsonl, line 2' in first.err
    assert 'rows.jsonl' not in other.err
