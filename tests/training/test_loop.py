"""Runs in this process: their results, progress and ends."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.training import runs
from vipllava_jax import training
from vipllava_jax.arrays import flat
from vipllava_jax.data import workers
from vipllava_jax.data.batches import Batches, BatchSettings
from vipllava_jax.data.row_checks import read_rows
from vipllava_jax.model.weights import LoRA
from vipllava_jax.training import held_out, run
from vipllava_jax.training.loss import Examples, loss
from vipllava_jax.training.progress import ProgressListener


class Heard(ProgressListener):
    """Records the progress of a run."""

    def __init__(self):
        self.description, self.notes, self.steps = {}, [], []

    def run_started(self, description, done, steps, log_every):
        self.description = description

    def step_done(self, record):
        self.steps.append(record['step'])

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    return runs.world(tmp_path_factory.mktemp('world'))


@pytest.fixture
def keys(world, tmp_path):
    model, folder = world
    given = dict(model=model, data=folder / 'rows.jsonl', output=tmp_path / 'run', batch=4, workers=0)
    return dict(**given, recipe='projector', steps=4, learning_rate=1e-3, warmup=0.0)


def leaves(folder):
    return dict(flat(vj.load(folder, fuse=False).params))


def mean(model, file, **how):
    """The loss of a model on the first batch of a file's rows, by the functions that the loop uses."""
    batch = Batches(read_rows([file]), model.processor, BatchSettings(batch_size=4, fit='pad', **how)).at(0)
    images = model.processor.image_settings.normalize(batch.images)
    total, count = loss(model.params, Examples(batch.tokens, batch.targets, images, None), model.cfg)
    return float(total) / int(count)


@pytest.mark.slow
def test_what_trains_is_changed_and_nothing_else_and_held_out_rows_are_looked_at(world, keys):
    model, folder = world
    heard = Heard()
    held = dict(eval_data=folder / 'held.jsonl', eval_every=3)
    made = training.train(**keys, **held, accumulate=2, progress=heard)
    assert made.folder == keys['output'] / 'model'
    before, after = leaves(model), leaves(made.folder)
    changed = {path.split('/')[0] for path in before if (before[path] != after[path]).any()}
    assert changed == {'projector'}
    assert heard.steps == [1, 2, 3, 4]
    assert 'projector' in heard.description['trains']
    assert heard.description['data'] == '10 rows, none broken'
    records = runs.metrics(keys['output'])
    assert ['eval_loss' in record for record in records] == [False, False, True, True]
    trained = vj.load(made.folder, fuse=False)

    first = mean(vj.load(model, fuse=False), folder / 'rows.jsonl')
    assert records[0]['loss'] == pytest.approx(first, rel=1e-5)
    last = mean(trained, folder / 'held.jsonl', seed=None)
    assert records[-1]['eval_loss'] == pytest.approx(last, rel=1e-5)
    assert training.train(**keys, **held, accumulate=2, progress=heard).step == 4
    assert heard.steps == [1, 2, 3, 4]  # the second run was already complete


@pytest.mark.slow
def test_all_parts_may_train(world, keys):
    made = training.train(**keys, trains=('vision', 'projector', 'llama'))
    before, after = leaves(world[0]), leaves(made.folder)
    same = {path for path in before if (before[path] == after[path]).all()}
    assert same == {'clip/post_norm/w', 'clip/post_norm/b'}  # which no tap uses


def test_epochs_are_of_whole_batches(world, keys):
    del keys['steps']
    made = training.train(**keys, epochs=2)
    assert made.step == 6  # 10 rows give 3 batches of 4, the last of which is filled up


def test_a_signal_while_held_out_rows_are_looked_at_saves_too(world, keys, monkeypatch):
    def signalled(*_):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(held_out.HeldOutEvaluator, 'loss', signalled)
    with pytest.raises(training.Stopped, match=r'stopped after step 3, saved as (.+)/3;'):
        training.train(**keys, eval_data=world[1] / 'held.jsonl', eval_every=3)
    assert (keys['output'] / 'checkpoints' / '3').is_dir()
    assert [record['step'] for record in runs.metrics(keys['output'])] == [1, 2, 3]


@pytest.fixture
def processes(monkeypatch):
    """Records the loading processes that are started."""
    begun = []
    begin = workers._Process.__init__

    def noted(process):
        begin(process)
        begun.append(process.process)

    monkeypatch.setattr(workers._Process, '__init__', noted)
    return begun


def test_processes_begin_once_a_run_for_all_its_looks(world, keys, processes):
    held = dict(eval_data=world[1] / 'held.jsonl', eval_every=1, batch=2, workers=1)
    training.train(**{**keys, **held})
    looks = [record['eval_loss'] for record in runs.metrics(keys['output'])]
    assert len(set(looks)) == 4
    assert len(processes) == 4  # to check and to load the rows and the held-out rows
    assert all(process.returncode is not None for process in processes)


def test_a_signal_ends_a_look_at_once_and_its_processes(world, keys, processes, monkeypatch):
    looked, loss = [], held_out._loss

    def signalled(*args):
        looked.append(args)
        os.kill(os.getpid(), signal.SIGTERM)
        return loss(*args)

    monkeypatch.setattr(held_out, '_loss', signalled)
    held = dict(eval_data=world[1] / 'held.jsonl', eval_every=1, batch=1, workers=1)
    with pytest.raises(training.Stopped, match=r'stopped after step 1, saved as (.+)/1;'):
        training.train(**{**keys, **held})
    assert len(looked) == 1  # of three
    assert len(processes) == 4
    assert all(process.returncode is not None for process in processes)


@pytest.mark.parametrize('begun', [False, True])
def test_a_model_of_another_origin_is_not_overwritten(world, keys, tmp_path, begun):
    model = shutil.copytree(world[0], tmp_path / 'model')
    if begun:
        (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
    before = leaves(model)
    with pytest.raises(ValueError, match=r'model exists, and was not written by this run'):
        training.train(**{**keys, 'model': model, 'output': tmp_path})
    assert all((w == before[path]).all() for path, w in leaves(model).items())


def test_a_mistake_leaves_nothing_behind(world, keys, tmp_path):
    broken, other = tmp_path / 'broken.jsonl', shutil.copytree(world[0], tmp_path / 'other')
    broken.write_text('{"conversations": []}')
    config = json.loads((other / 'config.json').read_text())
    config['text_config']['num_hidden_layers'] = 9
    (other / 'config.json').write_text(json.dumps(config))
    held = dict(eval_data=broken)
    for wrong in (
        dict(model=tmp_path / 'none'),
        dict(model=tmp_path),
        dict(model=other),
        dict(data=broken),
        held,
    ):
        with pytest.raises(ValueError, match='none|no weights|do not agree|broken'):
            training.train(**{**keys, 'output': tmp_path / 'runs' / 'mine', **wrong})
        assert not (tmp_path / 'runs').exists()


def test_a_folder_where_another_trains_is_refused_before_the_rows_are_read(world, keys):
    keys['output'].mkdir()
    code = 'import pathlib, sys; from vipllava_jax.training.checkpoints import lock_run\n'
    code += f'with lock_run(pathlib.Path({str(keys["output"])!r})): print(flush=True); sys.stdin.read()'
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, '-c', code], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match='another process is training there'):
            training.train(**{**keys, 'data': 'none.jsonl'})
        other.stdin.close()


def test_a_run_is_not_mixed_with_another(world, keys, tmp_path):
    _, folder = world
    training.train(**keys)
    with pytest.raises(ValueError, match=r'run holds a run with other settings \(seed was 0 and is 7\)'):
        training.train(**keys, seed=7)
    other = tmp_path / 'other.jsonl'
    line = json.loads((folder / 'rows.jsonl').read_text().splitlines()[0])
    other.write_text(json.dumps({**line, 'image': str(folder / line['image'])}))
    with pytest.raises(ValueError, match=r'other rows in the data'):
        training.train(**{**keys, 'data': other})
    assert training.train(**{**keys, 'steps': 6}, resume_anyway=True).step == 6
    assert [record['step'] for record in runs.metrics(keys['output'])] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match='already has 6 steps'):
        training.train(**keys, resume_anyway=True)


@pytest.mark.slow
def test_an_adapter_is_what_is_merged(world, keys):
    lora = dict(recipe='lora', lora_rank=2, lora_alpha=8.0, lora_dropout=0.1, save_every=2)
    made = training.train(**{**keys, **lora})
    assert made.folder == keys['output'] / 'adapter'
    merged = training.train(**{**keys, **lora}, merge=True)  # the same run, exported as a merged model
    assert merged.folder == keys['output'] / 'model'
    beside = vj.load(world[0], adapter=made.folder, fuse=False, merge=False).params
    pairs = [leaf for _, leaf in flat(beside) if isinstance(leaf, LoRA)]
    assert len(pairs) == 2 * 7
    assert all(leaf.scale == 4 and jnp.abs(leaf.b).max() > 0 for leaf in pairs)
    whole, before = dict(flat(vj.load(world[0], adapter=made.folder, fuse=False).params)), leaves(world[0])
    for path, w in leaves(merged.folder).items():
        np.testing.assert_allclose(w, whole[path], rtol=1e-5, atol=1e-6)
    changed = {path for path in before if (before[path] != whole[path]).any()}
    assert {path.split('/')[0] for path in changed} == {'projector', 'llama'}


@pytest.mark.slow
def test_the_best_of_the_looks_is_kept_and_becomes_the_model(world, keys):
    wild = dict(recipe='finetune', learning_rate=1.0, optimizer='sgd', schedule='constant', clip_norm=1.0)
    wild |= dict(eval_data=world[1] / 'held.jsonl', eval_every=1, keep=1, export='best', steps=6)
    made = training.train(**{**keys, **wild})
    looks = [record['eval_loss'] for record in runs.metrics(keys['output'])]
    best = 1 + int(np.argmin(looks))
    assert best < 6, 'else nothing is tested: make it wilder'
    assert made.step == best
    kept = {path.name for path in (keys['output'] / 'checkpoints').iterdir()}
    assert kept == {str(best), '6'}
    trained = vj.load(made.folder, fuse=False)
    assert mean(trained, world[1] / 'held.jsonl', seed=None) == pytest.approx(min(looks), rel=1e-4)


@pytest.mark.slow
def test_a_result_of_other_weights_than_are_asked_for_is_made_anew(world, keys, monkeypatch):
    keys |= dict(save_every=1, warmup=0.5, export='best', eval_data=world[1] / 'held.jsonl', eval_every=1)
    losses = iter([2.0, 1.0, 3.0, 3.0, 3.0, 3.0])
    monkeypatch.setattr(held_out.HeldOutEvaluator, 'loss', lambda *_: next(losses))
    made = training.train(**keys)
    best = leaves(made.folder)
    assert made.step == 2
    assert training.train(**{**keys, 'export': 'last'}) == (made.folder, 4)
    assert any((w != best[path]).any() for path, w in leaves(made.folder).items())

    def killed(*_):
        raise KeyboardInterrupt

    longer = {**keys, 'export': 'last', 'steps': 6, 'resume_anyway': True}
    with monkeypatch.context() as patch:
        patch.setattr(run.export, 'export_result', killed)  # when all its steps are saved
        with pytest.raises(KeyboardInterrupt):
            training.train(**longer)
    before = leaves(made.folder)
    assert training.train(**longer).step == 6
    assert any((w != before[path]).any() for path, w in leaves(made.folder).items())


def test_a_loss_that_is_no_number_stops_and_names_the_rows(world, keys):
    wild = dict(recipe='finetune', learning_rate=1e30, optimizer='sgd', schedule='constant', save_every=1)
    with pytest.raises(training.NotFinite) as caught:
        training.train(**{**keys, **wild, 'steps': 9})
    told = str(caught.value)
    step = int(told.split(':')[0].removeprefix('step '))
    assert told.count('row-') == 4
    assert f'the last checkpoint is {keys["output"]}/checkpoints/{step - 1}' in told
    records = runs.metrics(keys['output'])
    assert len(records) == step - 1
    assert all(math.isfinite(record['loss']) for record in records)
    assert not (keys['output'] / 'model').exists()


def test_broken_rows_stop_a_run_before_it_begins_or_are_left_out_and_told(world, keys, tmp_path, monkeypatch):
    lines = (world[1] / 'rows.jsonl').read_text().splitlines()
    broken = tmp_path / 'broken.jsonl'
    broken.write_text('\n'.join([*lines[:5], lines[5].replace('5.png', 'none.png'), *lines[6:]]))
    keys |= dict(data=broken, images=world[1])
    with pytest.raises(ValueError, match=r'1 of 10 rows are broken:\n.*line 6: no picture'):
        training.train(**keys)
    heard = Heard()
    training.train(**{**keys, 'steps': 1}, skip_broken=True, progress=heard)
    assert heard.description['data'] == '9 rows, 1 broken skipped'
    assert any('line 6: no picture' in note for note in heard.notes)


@pytest.mark.slow
def test_a_picture_found_damaged_later_costs_no_step(world, keys, tmp_path):
    lines = (world[1] / 'rows.jsonl').read_text().splitlines()
    (tmp_path / 'cut.png').write_bytes((world[1] / '5.png').read_bytes()[:300])
    broken = tmp_path / 'broken.jsonl'
    broken.write_text('\n'.join([*lines[:5], lines[5].replace('5.png', f'{tmp_path}/cut.png'), *lines[6:]]))
    keys |= dict(data=broken, images=world[1], batch=1, steps=20, seed=3)
    with pytest.raises(ValueError, match=r'line 6: .*cut.png'):
        training.train(**keys)
    done = len(runs.metrics(keys['output']))
    assert 0 < done < 10, 'else nothing is tested: give another seed'
    assert (keys['output'] / 'checkpoints' / str(done)).is_dir()
    heard = Heard()
    training.train(**keys, skip_broken=True, resume_anyway=True, progress=heard)
    assert heard.steps == [*range(done + 1, 21)]


def test_weights_keep_the_types_they_came_in(world, keys, tmp_path):
    half = tmp_path / 'half'
    model = vj.load(world[0], dtype='bfloat16', fuse=False)
    vj.checkpoint.save(half, model.params, model.cfg, files_from=world[0])
    made = training.train(**{**keys, 'model': half, 'steps': 1})
    assert {leaf.dtype for leaf in leaves(made.folder).values()} == {jnp.dtype(jnp.bfloat16)}
    for path, w in leaves(made.folder).items():
        if not path.startswith('projector'):
            np.testing.assert_array_equal(w, dict(flat(model.params))[path])


@pytest.mark.slow
def test_int8_beneath_an_adapter(world, keys):
    lora = dict(recipe='lora', lora_rank=2, quantize='int8', steps=2)
    made = training.train(**{**keys, **lora})
    params = vj.load(world[0], quantize='int8', adapter=made.folder, merge=False).params
    assert any(isinstance(leaf, LoRA) for _, leaf in flat(params))
    assert jax.tree.all(jax.tree.map(lambda w: bool(jnp.isfinite(w).all()), params))
