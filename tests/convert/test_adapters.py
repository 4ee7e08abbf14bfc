"""Adapters in files that we write, and files that do not fit the model or are incomplete."""

import shutil

import numpy as np
import pytest

from tests.convert.files import Q, pair, write_adapter
from tests.trees import same
from vipllava_jax.arrays import flat, nested
from vipllava_jax.loading import load
from vipllava_jax.messages import CheckpointError
from vipllava_jax.model.weights import LoRA
from vipllava_jax.training import lora


def forgetting(params):
    """The params without the adapters' dropout, which only training uses."""
    return nested(
        (path, LoRA(w.base, w.a, w.b, w.scale) if isinstance(w, LoRA) else w) for path, w in flat(params)
    )


@pytest.mark.parametrize('base_format', ['converted', 'torch'])
def test_a_saved_adapter_is_loaded_unchanged(model, adapter, folder, source, base_format):
    base = folder if base_format == 'converted' else source
    params, _ = model
    found = load(base, adapter=adapter, merge=False, fuse=False)
    same(dict(flat(found.params)), dict(flat(forgetting(params))))
    assert {w.scale for _, w in flat(found.params) if isinstance(w, LoRA)} == {8 / 3}
    same(dict(flat(load(base, adapter=adapter, fuse=False).params)), dict(flat(lora.merge(params))))


def message(folder, adapter) -> str:
    with pytest.raises(CheckpointError) as error:
        load(folder, adapter=adapter)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_all_faults_are_reported_together(folder, tmp_path, rng):
    tensors = {}
    for i in range(5):  # two more than the model has layers
        tensors |= pair(f'base_model.model.model.language_model.layers.{i}.self_attn.v_proj', 16, 64, rng)
    tensors |= pair(f'{Q}', 48, 48, rng, rank=4)
    tensors |= {f'{Q.replace("q_proj", "k_proj")}.lora_A.weight': np.zeros((2, 48), np.float32)}
    tensors |= {f'{Q}.lora_magnitude_vector': np.zeros(48, np.float32)}
    tensors |= pair('base_model.model.model.language_model.embed_tokens', 400, 48, rng)
    write_adapter(tmp_path / 'a', tensors, base_model_name_or_path='somebody/13b')
    error = message(folder, tmp_path / 'a')
    for part in (
        f'{tmp_path / "a"}: not an adapter of this model. ',
        'not in the model: base_model.',
        'lora_A.weight and 4 more; without its other half: base_model.',
        '[4, 48] instead of [2, 48] and 2 more. ',
        'Use the model that it was trained for (somebody/13b according to adapter_config.json), or train it',
    ):
        assert part in error, part
    assert len(error) <= 500


@pytest.mark.parametrize(
    ('fields', 'error'),
    [
        ({'peft_type': 'IA3'}, "peft_type: 'IA3' is not supported, only 'LORA'"),
        ({'use_dora': True}, 'use_dora: True is not supported'),
        ({'init_lora_weights': 'pissa'}, "init_lora_weights: 'pissa' is not supported"),
        ({'r': 'many'}, "r: expected a whole number from 1 to 65536, found 'many'"),
        ({'lora_alpha': None, 'r': 4}, r'lora_A.weight \[2, 48\] instead of \[4, 48\]'),
        (
            {'rank_pattern': {'q_proj': -1}},
            'rank_pattern.q_proj: expected a whole number from 1 to 65536, found -1',
        ),
        ({'rank_pattern': {'q_proj(': 1}}, r'rank_pattern.*q_proj\(.*: expected a regular expression'),
        ({'alpha_pattern': []}, r'alpha_pattern: expected an object, found \[\]'),
    ],
)
def test_unsupported_configs_are_refused(folder, tmp_path, rng, fields, error):
    write_adapter(tmp_path / 'a', pair(Q, 48, 48, rng), **fields)
    with pytest.raises(CheckpointError, match=error):
        load(folder, adapter=tmp_path / 'a')


def test_missing_and_broken_files_are_refused(folder, adapter, tmp_path, rng):
    assert message(folder, tmp_path / 'x') == (
        f'{tmp_path / "x"}: no adapter: looked for adapter_model.safetensors, adapter_model.bin, '
        'non_lora_trainables.bin, mm_projector.bin, found no such folder'
    )
    assert 'found config.json' in message(folder, folder)
    assert 'found config.json' in message(folder, str(folder))
    copy = shutil.copytree(adapter, tmp_path / 'copy')
    file = copy / 'adapter_model.safetensors'
    file.write_bytes(file.read_bytes()[:-9])
    assert f'{file}: truncated' in message(folder, copy)
    (copy / 'adapter_config.json').unlink()
    assert f'{copy / "adapter_config.json"}: cannot be read' in message(folder, copy)
    write_adapter(
        tmp_path / 'a',
        {
            f'{Q}.lora_A.weight': np.zeros((2, 48), np.int8),
            f'{Q}.lora_B.weight': np.zeros((48, 2), np.float32),
        },
    )
    assert f'of a type other than float32, float16, bfloat16: {Q}.lora_A.weight (int8)' in message(
        folder, tmp_path / 'a'
    )
    twice = pair(Q, 48, 48, rng) | pair(
        Q.replace('model.language_model.', 'language_model.model.'), 48, 48, rng
    )
    write_adapter(tmp_path / 'a', twice)
    assert 'stored twice: ' in message(folder, tmp_path / 'a')
