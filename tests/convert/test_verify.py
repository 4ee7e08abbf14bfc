"""A comparison finds all differences, and none between equal checkpoints."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from vipllava_jax import checkpoint
from vipllava_jax.convert.to_flax import convert
from vipllava_jax.convert.to_torch import export
from vipllava_jax.convert.verify import difference, verify
from vipllava_jax.messages import CheckpointError


@pytest.mark.parametrize('order', [1, -1])
def test_equal_checkpoints_do_not_differ(folder, source, order):
    calls = []
    found = verify(*[source, folder][::order], progress=lambda *call: calls.append(call))
    assert found.logits == 0
    assert set(found.groups.values()) == {0}
    assert {
        'clip attention',
        'clip positions',
        'projector norms',
        'llama mlp',
        'llama head',
    } <= found.groups.keys()
    assert calls[-1][0] == calls[-1][1]


def test_a_changed_weight_is_found(folder, source, tmp_path):
    params, cfg = checkpoint.restore(folder)
    gate = params['llama']['layers_1']['gate']
    gate['w'] = gate['w'].at[3, 4].add(0.5)
    checkpoint.save(tmp_path / 'other', params, cfg)
    found = verify(source, tmp_path / 'other')
    assert found.groups.pop('llama mlp') == pytest.approx(0.5)
    assert set(found.groups.values()) == {0}
    assert found.logits > 0


@pytest.mark.slow
def test_another_dtype_differs_by_its_rounding(folder, tmp_path):
    export(folder, tmp_path / 'half', dtype='bfloat16')
    found = verify(folder, tmp_path / 'half')
    largest = max(float(abs(x).max()) for x in jax.tree.leaves(checkpoint.restore(folder)[0]))
    assert 0 < max(found.groups.values()) <= largest * 2**-8


@pytest.mark.slow
def test_vocabularies_of_different_sizes_are_compared_in_their_common_rows(folder, tmp_path):
    params, cfg = checkpoint.restore(folder)
    small = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, vocab=cfg.image_token))
    llama = params['llama']
    llama['embed']['w'] = llama['embed']['w'][: cfg.image_token]
    llama['head']['w'] = llama['head']['w'][:, : cfg.image_token]
    checkpoint.save(tmp_path / 'small', params, small)
    export(tmp_path / 'small', tmp_path / 'grown')
    found = verify(tmp_path / 'small', tmp_path / 'grown')
    assert found.logits < 1e-5
    assert set(found.groups.values()) == {0}


def test_one_folder_must_be_converted_and_the_other_pytorch(folder, source, tmp_path):
    for a, b in ((folder, folder), (source, source)):
        with pytest.raises(CheckpointError, match='one must be converted, and the other PyTorch'):
            verify(a, b)
    other = shutil.copytree(folder, tmp_path / 'other')
    (other / 'config.json').write_text(
        (other / 'config.json').read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1')
    )
    with pytest.raises(
        CheckpointError, match='vipllava.json and config.json do not agree on llama/layers_1/attn_norm/w'
    ):
        verify(source, other)


@pytest.mark.parametrize(
    ('a', 'b', 'expected'),
    [
        ([1.0, 2], [1.0, 2], 0),
        ([1.0, 2], [1, 4.5], 2.5),
        ([np.nan], [np.nan], 0),
        ([np.nan], [1.0], np.inf),
        ([], [], 0),
    ],
)
def test_difference(a, b, expected):
    assert difference(np.array(a, np.float32), np.array(b, np.float32)) == expected


@pytest.mark.slow
@pytest.mark.parametrize(('int_dtype', 'tolerance'), [('int8', 0.5), ('int4', 5.0)])
def test_quantized_weights_differ_by_half_a_step(int_dtype, tolerance, source, tmp_path):
    convert(source, tmp_path / int_dtype, quantize=int_dtype)
    compared = verify(source, tmp_path / int_dtype)
    packed = {group for group in compared.groups if group.endswith(f' ({int_dtype})')}
    assert packed == {
        f'llama attention ({int_dtype})',
        f'llama mlp ({int_dtype})',
        f'llama head ({int_dtype})',
    }
    assert all(compared.groups[group] > 0 for group in packed)
    assert 0 < compared.logits < tolerance  # of logits of about 10
    assert compared.equal
    compared.groups['llama norms'] = 0.1
    assert not compared.equal
