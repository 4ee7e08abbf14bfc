"""Checkpoints quantized by other tools are recognized by their config or by the names of tensors."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.convert.files import write_safetensors
from vipllava_jax.convert.foreign_quantization import refuse_by_names
from vipllava_jax.convert.table import CLIP, LLAMA, PROJECTOR
from vipllava_jax.convert.to_flax import plan_conversion
from vipllava_jax.messages import CheckpointError

ADVICE = 'use the original weights with --quantize int8'


@pytest.fixture
def copy(source, tmp_path):
    return shutil.copytree(source, tmp_path / 'copy')


def configured(folder, **fields):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | fields))


def message(folder) -> str:
    with pytest.raises(CheckpointError) as raised:
        plan_conversion(folder)
    assert len(str(raised.value)) <= 500
    return str(raised.value)


@pytest.mark.parametrize(
    ('config', 'tool'),
    [
        ({'quant_method': 'bitsandbytes', 'load_in_4bit': True}, 'bitsandbytes'),
        ({'load_in_4bit': False, 'load_in_8bit': True}, 'bitsandbytes'),
        *(({'quant_method': tool, 'bits': 4}, tool) for tool in ('awq', 'gptq', 'fp8', 'hqq', 'torchao')),
        ({'quant_method': 'compressed-tensors', 'config_groups': {}}, 'compressed-tensors'),
        ({'bits': 4}, 'an unnamed method'),
        ({'quant_method': ['awq']}, 'an unnamed method'),
        ({'quant_method': '\x1b[31m' + 'x' * 9999}, '\\x1b'),
        ('awq', "'awq'"),
        ([4], '[4]'),
    ],
)
def test_quantization_is_recognized_by_the_config(copy, config, tool):
    configured(copy, quantization_config=config)
    error = message(copy)
    assert error.startswith(f'{copy}: quantized by {tool}')
    assert error.endswith(f' (config.json): {ADVICE}')


def test_quantization_in_a_part_of_the_config_is_recognized(copy):
    config = json.loads((copy / 'config.json').read_text())
    configured(copy, text_config=config['text_config'] | {'quantization_config': {'quant_method': 'awq'}})
    assert 'quantized by awq (config.json)' in message(copy)
    configured(copy, text_config=config['text_config'], compression_config={'quant_method': 'sparse'})
    assert 'quantized by sparse (config.json)' in message(copy)


@pytest.mark.parametrize(
    'config', [None, {}, {'quant_method': 'bitsandbytes', 'load_in_4bit': False, 'load_in_8bit': False}]
)
def test_a_config_without_quantization_is_accepted(copy, config):
    configured(copy, quantization_config=config)
    plan_conversion(copy)


def test_the_config_is_checked_before_the_files(copy):
    """The config is checked first, as the files may have unknown dtypes or be missing."""
    for path in copy.glob('*.safetensors'):
        path.unlink()
    configured(copy, quantization_config={'quant_method': 'mxfp4'})
    assert 'quantized by mxfp4' in message(copy)


Q = 'language_model.model.layers.0.self_attn.q_proj'


@pytest.mark.parametrize(
    ('name', 'tool'),
    [
        ('weight.quant_state.bitsandbytes__nf4', 'bitsandbytes'),
        ('weight.absmax', 'bitsandbytes'),
        ('SCB', 'bitsandbytes'),
        *((name, 'GPTQ or AWQ') for name in ('qweight', 'qzeros', 'scales', 'g_idx')),
        ('weight_scale_inv', 'fp8'),
        ('weight_packed', 'compressed-tensors'),
        ('weight_scale', 'compressed-tensors or fp8'),
        ('input_scale', 'compressed-tensors or fp8'),
        ('W_q', 'HQQ'),
        ('weight._data', 'quanto'),
        ('weight.tensor_impl.data', 'torchao'),
        ('weight:qdata', 'torchao'),
        ('weight_tensor_impl_packed', 'torchao'),
        ('_weight_qdata', 'torchao'),
        ('codebooks', 'AQLM'),
    ],
)
def test_quantization_is_recognized_by_names(copy, name, tool):
    shard = min(copy.glob('*.safetensors'))
    index = json.loads((copy / 'model.safetensors.index.json').read_text())
    index['weight_map'][f'{Q}.{name}'] = shard.name
    (copy / 'model.safetensors.index.json').write_text(json.dumps(index))
    save_file(load_file(shard) | {f'{Q}.{name}': np.zeros(3, np.uint8)}, shard)
    assert message(copy).startswith(f'{copy}: quantized by {tool}')
    assert message(copy).endswith(f' (it holds {Q}.{name}): {ADVICE}')


def test_ordinary_names_are_accepted(source):
    refuse_by_names((name.format(7) for name, _, _ in CLIP + PROJECTOR + LLAMA), 'here')


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'float8_e4m3fn'])
def test_quantization_is_recognized_by_dtypes(copy, dtype):
    """8-bit weights without scales."""
    for shard in copy.glob('*.safetensors'):
        held = load_file(shard)
        write_safetensors(
            shard, {name: w.astype(getattr(ml_dtypes, dtype, dtype)) for name, w in held.items()}
        )
    error = message(copy)
    assert f'({dtype})' in error
    assert error.endswith(ADVICE)
