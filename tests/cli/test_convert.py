"""`vipllava convert` as a user runs it: files are kept, and errors are one line, before any long work."""

import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from vipllava_jax import checkpoint
from vipllava_jax.folders import new_folder


def files(folder) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def refused(ran, *words) -> None:
    assert ran.code == 2
    assert ran.err.count('\n') == 1
    assert len(ran.err) <= 520
    for word in words:
        assert str(word) in ran.err
    assert not ran.out


def test_the_target_of_a_link_is_written(vipllava, source, tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('real')
    assert vipllava('convert', source, tmp_path / 'link').code == 0
    assert (tmp_path / 'link').is_symlink()
    assert checkpoint.is_checkpoint(tmp_path / 'real')
    refused(
        vipllava('convert', source, tmp_path / 'link'), 'another folder, or replace it with overwrite (--over'
    )
    assert vipllava('convert', source, tmp_path / 'link', '--overwrite').code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['link', 'real']


def test_no_input_is_overwritten_whatever_its_path(vipllava, folder, source, adapter, tmp_path, monkeypatch):
    (tmp_path / 'to folder').symlink_to(folder)
    (tmp_path / 'to adapter').symlink_to(adapter)
    (tmp_path / 'to parent').symlink_to(folder.parent)
    before = files(folder), files(adapter)
    monkeypatch.chdir(folder)
    for target in (folder, '.', f'../{folder.name}', folder / 'new', '..', tmp_path / 'to folder'):
        ran = vipllava('convert', folder, target, '--overwrite')
        refused(ran)
    refused(vipllava('convert', tmp_path / 'to folder', tmp_path / 'to parent' / folder.name, '--overwrite'))
    for target in (adapter, adapter / 'new', tmp_path / 'to adapter' / 'new', adapter.parent):
        ran = vipllava('convert', folder, target, '--adapter', adapter, '--overwrite')
        refused(ran, 'choose')
    assert (files(folder), files(adapter)) == before


def test_a_target_is_refused_before_its_source_is_located(vipllava, tmp_path, monkeypatch):
    """The source may be a download of 14 GB."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
    (tmp_path / 'taken').mkdir()
    (tmp_path / 'taken' / 'letter').touch()
    refused(vipllava('convert', 'mine/large', tmp_path / 'taken'), 'taken: exists; choose another folder')
    (tmp_path / 'loop').symlink_to('loop')
    refused(vipllava('convert', 'mine/large', tmp_path / 'loop'), 'a link that leads to itself')


def test_the_second_of_two_writers_is_refused_before_its_source_is_located(vipllava, tmp_path):
    with new_folder(tmp_path / 'model', 0, lambda folder: False, False):
        (tmp_path / 'link').symlink_to('model')
        for target in ('model', 'link', f'../{tmp_path.name}/model'):
            for more in ((), ('--overwrite',)):
                ran = vipllava('convert', 'mine/large', tmp_path / target, *more)
                refused(ran, 'another process is writing there')


@pytest.mark.parametrize('direction', ['flax', 'pytorch'])
def test_overwriting_keeps_files_that_are_not_of_a_model(vipllava, source, folder, tmp_path, direction):
    work = (source, folder) if direction == 'flax' else (folder, source)
    target = shutil.copytree(work[1], tmp_path / 'model')
    (target / 'notes.txt').write_text('mine')
    before = files(target)
    refused(vipllava('convert', work[0], target, '--overwrite'), 'notes.txt', 'would be lost')
    assert files(target) == before
    (target / 'notes.txt').unlink()
    assert vipllava('convert', work[0], target, '--overwrite').code == 0


@pytest.mark.slow
def test_weights_with_nan_are_a_warning_when_converting(vipllava, folder, tmp_path):
    """NaN and infinity are a warning when converting, and an error when comparing or asking."""
    params, cfg = checkpoint.restore(folder)
    norm = params['llama']['layers_1']['attn_norm']
    norm['w'] = norm['w'].at[3].set(jnp.nan)
    checkpoint.save(tmp_path / 'ours', params, cfg, files_from=folder)
    ran = vipllava('convert', tmp_path / 'ours', tmp_path / 'theirs', '--verify')
    assert ran.code == 2
    name = 'language_model.model.layers.1.input_layernorm.weight'
    assert f'vipllava: warning: {name} holds NaN or infinity\n' in ran.err
    assert 'NaN' not in ran.out
    assert 'is not equal to' in ran.err
    assert 'NaN or infinity in llama/layers_1/attn_norm/w, logits; copy the source again' in ran.err
    for place in ('ours', 'theirs'):
        ran = vipllava('ask', '--model', tmp_path / place, 'What is it?', '--max-new-tokens', 8)
        assert (ran.code, ran.out.strip()) == (2, '')
        assert "the model's logits are not finite" in ran.err
        assert 'llama/layers_1/attn_norm/w' in ran.err


def test_a_flipped_bit_is_named_by_every_command(vipllava, folder, source, tmp_path):
    copy = shutil.copytree(folder, tmp_path / 'copy')
    gate = np.asarray(checkpoint.restore(folder)[0]['llama']['layers_1']['gate']['w']).tobytes()
    file = next(path for path in copy.rglob('d/*') if gate in path.read_bytes())
    data = bytearray(file.read_bytes())
    data[data.find(gate) + 5] ^= 4
    file.write_bytes(data)
    for arguments in (
        ('ask', '--model', copy, 'What is it?'),
        ('convert', copy, tmp_path / 'theirs'),
    ):
        ran = vipllava(*arguments)
        assert ran.code == 2
        assert 'llama/layers_1/gate/w does not match the checksum' in ran.err
    assert not (tmp_path / 'theirs').exists()


@pytest.mark.slow
def test_an_interruption_does_not_change_the_target(source, folder, tmp_path):
    target = shutil.copytree(folder, tmp_path / 'model')
    before = files(target)
    command = [sys.executable, '-m', 'vipllava_jax', 'convert', str(source), str(target), '--overwrite']
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not any('partial' in path.name for path in tmp_path.iterdir()):
        assert process.poll() is None
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert 'Traceback' not in err
    if process.returncode:  # it may have finished before the signal
        assert files(target) == before
    assert os.listdir(tmp_path) == ['model']
