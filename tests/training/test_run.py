"""A run's folder: what it holds, which run resumes it, and the exported result."""

import json
import shutil
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
from vipllava_jax.model.weights import LoRA
from vipllava_jax.training import held_out, run


@pytest.mark.slow
@pytest.mark.parametrize('has_checkpoint', [False, True])
def test_a_model_that_the_run_did_not_write_is_not_overwritten(world, keys, tmp_path, has_checkpoint):
    model = shutil.copytree(world[0], tmp_path / 'model')
    if has_checkpoint:
        (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
    before = runs.leaves(model)
    with pytest.raises(ValueError, match=r'model exists, and was not written by this run'):
        training.train(**{**keys, 'model': model, 'output': tmp_path})
    assert all((w == before[path]).all() for path, w in runs.leaves(model).items())


def test_an_error_before_the_start_writes_nothing(world, keys, tmp_path):
    broken, other = tmp_path / 'broken.jsonl', shutil.copytree(world[0], tmp_path / 'other')
    broken.write_text('{"conversations": []}')
    config = json.loads((other / 'config.json').read_text())
    config['text_config']['num_hidden_layers'] = 9
    (other / 'config.json').write_text(json.dumps(config))
    held_out_keys = dict(eval_data=broken)
    for changes in (
        dict(model=tmp_path / 'none'),
        dict(model=tmp_path),
        dict(model=other),
        dict(data=broken),
        held_out_keys,
    ):
        with pytest.raises(ValueError, match='none|no weights|do not agree|broken'):
            training.train(**{**keys, 'output': tmp_path / 'runs' / 'mine', **changes})
        assert not (tmp_path / 'runs').exists()


def test_a_folder_of_a_running_run_is_an_error_before_rows_are_read(world, keys):
    keys['output'].mkdir()
    code = 'import pathlib, sys; from vipllava_jax.training.checkpoints import lock_run\n'
    code += f'with lock_run(pathlib.Path({str(keys["output"])!r})): print(flush=True); sys.stdin.read()'
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, '-c', code], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match='another process is training there'):
            training.train(**{**keys, 'data': 'none.jsonl'})
        other.stdin.close()


@pytest.mark.slow
def test_another_run_is_not_resumed(world, keys, tmp_path):
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
def test_the_adapter_and_the_merged_model_agree(world, keys):
    lora = dict(recipe='lora', lora_rank=2, lora_alpha=8.0, lora_dropout=0.1, save_every=2)
    result = training.train(**{**keys, **lora})
    assert result.folder == keys['output'] / 'adapter'
    merged = training.train(**{**keys, **lora}, merge=True)  # the same run, exported as a merged model
    assert merged.folder == keys['output'] / 'model'
    unmerged = vj.load(world[0], adapter=result.folder, fuse=False, merge=False).params
    pairs = [leaf for _, leaf in flat(unmerged) if isinstance(leaf, LoRA)]
    assert len(pairs) == 2 * 7
    assert all(leaf.scale == 4 and jnp.abs(leaf.b).max() > 0 for leaf in pairs)
    loaded, before = (
        dict(flat(vj.load(world[0], adapter=result.folder, fuse=False).params)),
        runs.leaves(world[0]),
    )
    for path, w in runs.leaves(merged.folder).items():
        np.testing.assert_allclose(w, loaded[path], rtol=1e-5, atol=1e-6)
    changed = {path for path in before if (before[path] != loaded[path]).any()}
    assert {path.split('/')[0] for path in changed} == {'projector', 'llama'}


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_exported(world, keys):
    diverging = dict(
        recipe='finetune', learning_rate=1.0, optimizer='sgd', schedule='constant', clip_norm=1.0
    )
    diverging |= dict(eval_data=world[1] / 'held.jsonl', eval_every=1, keep=1, export='best', steps=6)
    result = training.train(**{**keys, **diverging})
    losses = [record['eval_loss'] for record in runs.metrics(keys['output'])]
    best = 1 + int(np.argmin(losses))
    assert best < 6, 'nothing is tested: raise the learning rate'
    assert result.step == best
    kept = {path.name for path in (keys['output'] / 'checkpoints').iterdir()}
    assert kept == {str(best), '6'}
    trained = vj.load(result.folder, fuse=False)
    assert runs.mean_loss(trained, world[1] / 'held.jsonl', seed=None) == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.slow
def test_a_result_of_another_step_is_exported_again(world, keys, monkeypatch):
    keys |= dict(save_every=1, warmup=0.5, export='best', eval_data=world[1] / 'held.jsonl', eval_every=1)
    losses = iter([2.0, 1.0, 3.0, 3.0, 3.0, 3.0])
    monkeypatch.setattr(held_out.HeldOutEvaluator, 'loss', lambda *_: next(losses))
    result = training.train(**keys)
    best = runs.leaves(result.folder)
    assert result.step == 2
    assert training.train(**{**keys, 'export': 'last'}) == (result.folder, 4)
    assert any((w != best[path]).any() for path, w in runs.leaves(result.folder).items())

    def interrupt(*_):
        raise KeyboardInterrupt

    longer = {**keys, 'export': 'last', 'steps': 6, 'resume_anyway': True}
    with monkeypatch.context() as patch:
        patch.setattr(run.export, 'export_result', interrupt)  # when all its steps are saved
        with pytest.raises(KeyboardInterrupt):
            training.train(**longer)
    before = runs.leaves(result.folder)
    assert training.train(**longer).step == 6
    assert any((w != before[path]).any() for path, w in runs.leaves(result.folder).items())


@pytest.mark.slow
def test_weights_keep_their_dtypes(world, keys, tmp_path):
    half = tmp_path / 'half'
    model = vj.load(world[0], dtype='bfloat16', fuse=False)
    vj.checkpoint.save(half, model.params, model.cfg, files_from=world[0])
    result = training.train(**{**keys, 'model': half, 'steps': 1})
    assert {leaf.dtype for leaf in runs.leaves(result.folder).values()} == {jnp.dtype(jnp.bfloat16)}
    for path, w in runs.leaves(result.folder).items():
        if not path.startswith('projector'):
            np.testing.assert_array_equal(w, dict(flat(model.params))[path])


@pytest.mark.slow
def test_an_adapter_is_trained_over_int8_weights(world, keys):
    lora = dict(recipe='lora', lora_rank=2, quantize='int8', steps=2)
    result = training.train(**{**keys, **lora})
    params = vj.load(world[0], quantize='int8', adapter=result.folder, merge=False).params
    assert any(isinstance(leaf, LoRA) for _, leaf in flat(params))
    assert jax.tree.all(jax.tree.map(lambda w: bool(jnp.isfinite(w).all()), params))
