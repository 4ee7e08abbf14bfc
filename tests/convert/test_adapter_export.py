"""Adapters that are written: their files, and what cannot be written."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from vipllava_jax.arrays import flat, nested
from vipllava_jax.convert.adapter_export import save_adapter
from vipllava_jax.messages import CheckpointError
from vipllava_jax.model.weights import LoRA
from vipllava_jax.training import lora


def test_the_files_have_the_format_of_peft(adapter, model):
    params, cfg = model
    tensors, config = (
        load_file(adapter / 'adapter_model.safetensors'),
        json.loads((adapter / 'adapter_config.json').read_text()),
    )
    stem = 'base_model.model.model.language_model.layers'
    names = {
        f'{stem}.{i}.{m}_proj.lora_{h}.weight'
        for i in range(cfg.text.layers)
        for h in 'AB'
        for m in (
            'self_attn.q',
            'self_attn.k',
            'self_attn.v',
            'self_attn.o',
            'mlp.gate',
            'mlp.up',
            'mlp.down',
        )
    }
    projector = 'base_model.model.model.multi_modal_projector.'
    names |= {
        f'{projector}{m}.{w}'
        for m in ('projector_layernorm', 'linear_1', 'linear_2')
        for w in ('weight', 'bias')
    }
    assert tensors.keys() == names
    o = params['llama']['layers_1']['o']['w']
    np.testing.assert_array_equal(tensors[f'{stem}.1.self_attn.o_proj.lora_A.weight'], o.a.reshape(-1, 3).T)
    np.testing.assert_array_equal(tensors[f'{stem}.1.self_attn.o_proj.lora_B.weight'], o.b.T)
    np.testing.assert_array_equal(
        tensors[projector + 'linear_1.weight'], params['projector']['linear_1']['w'].T
    )
    assert config == {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': 'somebody/model',
        'r': 3,
        'lora_alpha': 8,
        'lora_dropout': 0.1,
        'bias': 'none',
        'inference_mode': True,
        'modules_to_save': ['multi_modal_projector'],
        'target_modules': r'.*language_model\.(model\.)?layers\.\d+\.'
        r'(mlp\.down_proj|mlp\.gate_proj|mlp\.up_proj|self_attn\.k_proj|self_attn\.o_proj|self_attn\.q_proj|self_attn\.v_proj)',
    }


def test_adapters_that_one_config_cannot_describe_are_refused(model, tmp_path):
    params, cfg = model
    with pytest.raises(ValueError, match='one rank, scale and dropout expected, found none'):
        save_adapter(tmp_path / 'a', lora.merge(params), cfg)
    w = params['llama']['layers_0']['q']['w']
    changed = dict(flat(params)) | {'llama/layers_0/q/w': w.replace(scale=1.0)}
    with pytest.raises(ValueError, match='found rank 3 scale 1, rank 3 scale 2.66667'):
        save_adapter(tmp_path / 'a', nested(changed.items()), cfg)
    changed = dict(flat(params)) | {'llama/head/w': LoRA(params['llama']['head']['w'], w.a, w.b, 8 / 3)}
    with pytest.raises(ValueError, match="llama/head/w: only adapters of the decoder's layers"):
        save_adapter(tmp_path / 'a', nested(changed.items()), cfg)
    assert not (tmp_path / 'a').exists()


def test_an_existing_folder_is_not_overwritten(model, adapter, tmp_path):
    place = shutil.copytree(adapter, tmp_path / 'taken')
    with pytest.raises(CheckpointError, match='exists; choose another folder'):
        save_adapter(place, *model)
    save_adapter(place, *model, overwrite=True)
    assert (
        len(load_file(place / 'adapter_model.safetensors'))
        == len(load_file(adapter / 'adapter_model.safetensors')) - 6
    )
