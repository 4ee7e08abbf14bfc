"""The steps of a run: what they train, evaluations, signals and broken rows."""

import math
import os
import signal

import pytest

import vipllava_jax as vj
from tests.training import runs
from vipllava_jax import training
from vipllava_jax.data import workers
from vipllava_jax.training import held_out


@pytest.mark.slow
def test_only_trained_parts_change_and_held_out_rows_are_evaluated(world, keys):
    model, folder = world
    listener = runs.Listener()
    held_out_keys = dict(eval_data=folder / 'held.jsonl', eval_every=3)
    result = training.train(**keys, **held_out_keys, accumulate=2, progress=listener)
    assert result.folder == keys['output'] / 'model'
    before, after = runs.leaves(model), runs.leaves(result.folder)
    changed = {path.split('/')[0] for path in before if (before[path] != after[path]).any()}
    assert changed == {'projector'}
    assert listener.steps == [1, 2, 3, 4]
    assert 'projector' in listener.description['trains']
    assert listener.description['data'] == '10 rows, none broken'
    records = runs.metrics(keys['output'])
    assert ['eval_loss' in record for record in records] == [False, False, True, True]
    trained = vj.load(result.folder, fuse=False)

    first = runs.mean_loss(vj.load(model, fuse=False), folder / 'rows.jsonl')
    assert records[0]['loss'] == pytest.approx(first, rel=1e-5)
    last = runs.mean_loss(trained, folder / 'held.jsonl', seed=None)
    assert records[-1]['eval_loss'] == pytest.approx(last, rel=1e-5)
    assert training.train(**keys, **held_out_keys, accumulate=2, progress=listener).step == 4
    assert listener.steps == [1, 2, 3, 4]  # the second run was already complete


@pytest.mark.slow
def test_all_parts_can_be_trained(world, keys):
    result = training.train(**keys, trains=('vision', 'projector', 'llama'))
    before, after = runs.leaves(world[0]), runs.leaves(result.folder)
    same = {path for path in before if (before[path] == after[path]).all()}
    assert same == {'clip/post_norm/w', 'clip/post_norm/b'}  # which no tap uses


@pytest.mark.slow
def test_an_epoch_has_only_full_batches(world, keys):
    del keys['steps']
    result = training.train(**keys, epochs=2)
    assert result.step == 6  # 10 rows give 3 batches of 4, the last of which is filled up


@pytest.mark.slow
def test_a_signal_during_an_evaluation_saves_the_step(world, keys, monkeypatch):
    def send_signal(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(held_out.HeldOutEvaluator, 'loss', send_signal)
    with pytest.raises(training.Stopped, match=r'stopped after step 3, saved as (.+)/3;'):
        training.train(**keys, eval_data=world[1] / 'held.jsonl', eval_every=3)
    assert (keys['output'] / 'checkpoints' / '3').is_dir()
    assert [record['step'] for record in runs.metrics(keys['output'])] == [1, 2, 3]


@pytest.fixture
def processes(monkeypatch):
    """Records the loading processes that are started."""
    started = []
    init = workers._Process.__init__

    def recording_init(process):
        init(process)
        started.append(process.process)

    monkeypatch.setattr(workers._Process, '__init__', recording_init)
    return started


@pytest.mark.slow
def test_worker_processes_start_once_for_all_evaluations(world, keys, processes):
    held_out_keys = dict(eval_data=world[1] / 'held.jsonl', eval_every=1, batch=2, workers=1)
    training.train(**{**keys, **held_out_keys})
    losses = [record['eval_loss'] for record in runs.metrics(keys['output'])]
    assert len(set(losses)) == 4
    assert len(processes) == 4  # to check and to load the rows and the held-out rows
    assert all(process.returncode is not None for process in processes)


@pytest.mark.slow
def test_a_signal_ends_an_evaluation_and_its_workers_at_once(world, keys, processes, monkeypatch):
    batches, loss = [], held_out._loss

    def send_signal(*args):
        batches.append(args)
        os.kill(os.getpid(), signal.SIGTERM)
        return loss(*args)

    monkeypatch.setattr(held_out, '_loss', send_signal)
    held_out_keys = dict(eval_data=world[1] / 'held.jsonl', eval_every=1, batch=1, workers=1)
    with pytest.raises(training.Stopped, match=r'stopped after step 1, saved as (.+)/1;'):
        training.train(**{**keys, **held_out_keys})
    assert len(batches) == 1  # of three
    assert len(processes) == 4
    assert all(process.returncode is not None for process in processes)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(world, keys):
    diverging = dict(
        recipe='finetune', learning_rate=1e30, optimizer='sgd', schedule='constant', save_every=1
    )
    with pytest.raises(training.NotFinite) as caught:
        training.train(**{**keys, **diverging, 'steps': 9})
    message = str(caught.value)
    step = int(message.split(':')[0].removeprefix('step '))
    assert message.count('row-') == 4
    assert f'the last checkpoint is {keys["output"]}/checkpoints/{step - 1}' in message
    records = runs.metrics(keys['output'])
    assert len(records) == step - 1
    assert all(math.isfinite(record['loss']) for record in records)
    assert not (keys['output'] / 'model').exists()


def test_broken_rows_stop_a_run_before_it_starts_or_are_skipped(world, keys, tmp_path, monkeypatch):
    lines = (world[1] / 'rows.jsonl').read_text().splitlines()
    broken = tmp_path / 'broken.jsonl'
    broken.write_text('\n'.join([*lines[:5], lines[5].replace('5.png', 'none.png'), *lines[6:]]))
    keys |= dict(data=broken, images=world[1])
    with pytest.raises(ValueError, match=r'1 of 10 rows are broken:\n.*line 6: no picture'):
        training.train(**keys)
    listener = runs.Listener()
    training.train(**{**keys, 'steps': 1}, skip_broken=True, progress=listener)
    assert listener.description['data'] == '9 rows, 1 broken skipped'
    assert any('line 6: no picture' in note for note in listener.notes)


@pytest.mark.slow
def test_a_damaged_picture_loses_no_step(world, keys, tmp_path):
    lines = (world[1] / 'rows.jsonl').read_text().splitlines()
    (tmp_path / 'cut.png').write_bytes((world[1] / '5.png').read_bytes()[:300])
    broken = tmp_path / 'broken.jsonl'
    broken.write_text('\n'.join([*lines[:5], lines[5].replace('5.png', f'{tmp_path}/cut.png'), *lines[6:]]))
    keys |= dict(data=broken, images=world[1], batch=1, steps=20, seed=3)
    with pytest.raises(ValueError, match=r'line 6: .*cut.png'):
        training.train(**keys)
    done = len(runs.metrics(keys['output']))
    assert 0 < done < 10, 'nothing is tested: give another seed'
    assert (keys['output'] / 'checkpoints' / str(done)).is_dir()
    listener = runs.Listener()
    training.train(**keys, skip_broken=True, resume_anyway=True, progress=listener)
    assert listener.steps == [*range(done + 1, 21)]
