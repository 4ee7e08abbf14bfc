"""transformers loads what we export, and converting it back gives the same weights."""

import dataclasses
import json

import numpy as np
import pytest

from tests import peer
from tests.conftest import TINY
from tests.convert.layouts import LLAVA, TIED
from tests.convert.test_layouts import array
from tests.convert.test_to_flax import same
from tests.test_checkpoint import random_params
from vipllava_jax import checkpoint
from vipllava_jax.convert.to_flax import convert
from vipllava_jax.convert.to_torch import export
from vipllava_jax.convert.torch_files import open_checkpoint
from vipllava_jax.messages import CheckpointError


@pytest.mark.parity
@pytest.mark.parametrize(
    ('cfg', 'dtype', 'limit'),
    [
        (TINY, 'float32', 10**9),
        (TINY, 'float16', 1),
        (LLAVA, 'bfloat16', 60_000),
        (TIED, 'float16', 60_000),
        (TIED, 'float32', 10**9),
    ],
)
def test_transformers_loads_every_tensor(cfg, dtype, limit, tmp_path):
    import torch
    import transformers

    theirs = peer.model(cfg).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / 'theirs')
    convert(tmp_path / 'theirs', tmp_path / 'ours')
    export(tmp_path / 'ours', tmp_path / 'back', max_shard_bytes=limit)
    back, message = type(theirs).from_pretrained(tmp_path / 'back', output_loading_info=True)
    assert not any(message.values()), message
    assert back.dtype == theirs.dtype
    state, expected = back.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys()
    for name, x in expected.items():
        assert array(state[name]).tobytes() == array(x).tobytes(), name
    assert isinstance(theirs, getattr(transformers, back.config.architectures[0]))


def test_converting_back_restores_the_files(folder, source, tmp_path):
    assert len(list(source.glob('model-*-of-*.safetensors'))) > 2
    assert (source / 'tokenizer.json').read_bytes() == (folder / 'tokenizer.json').read_bytes()
    convert(source, tmp_path / 'ours')
    assert same(tmp_path / 'ours', folder)
    assert checkpoint.open(tmp_path / 'ours').cfg == checkpoint.open(folder).cfg


def test_shards_are_within_their_limit_and_the_index_lists_them(source):
    index = json.loads((source / 'model.safetensors.index.json').read_text())
    tensors = open_checkpoint(source)
    assert index['metadata']['total_size'] == sum(tensor.nbytes for tensor in tensors.values())
    assert index['weight_map'] == {name: tensor.file.name for name, tensor in tensors.items()}
    for file in source.glob('*.safetensors'):
        held = [tensor for tensor in tensors.values() if tensor.file == file]
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held) <= 100_000
        assert all(tensor.offset % 4 == 0 for tensor in held)


def test_the_safetensors_package_reads_the_export(folder, tmp_path):
    from safetensors.numpy import load_file

    export(folder, tmp_path / 'back')
    found = load_file(tmp_path / 'back' / 'model.safetensors')
    ours = dict(checkpoint.open(folder).stream())
    np.testing.assert_array_equal(found['language_model.model.norm.weight'], ours['llama/norm/w'])
    head = found['language_model.lm_head.weight']
    np.testing.assert_array_equal(head, ours['llama/head/w'].T)


@pytest.mark.slow
@pytest.mark.parametrize('tied', [False, True])
def test_a_vocabulary_without_the_image_token_grows(tied, tmp_path):
    cfg = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab=120, tied=tied))
    params = random_params(cfg)
    checkpoint.save(tmp_path / 'ours', params, cfg)
    report = export(tmp_path / 'ours', tmp_path / 'back')
    assert report.notes == ('image token 126: the vocabulary grew from 120 to 128; new rows are the mean',)
    convert(tmp_path / 'back', tmp_path / 'again')
    found, grown = checkpoint.restore(tmp_path / 'again')
    assert grown.text == dataclasses.replace(cfg.text, vocab=128)
    tables = {'embed': lambda tree: tree['llama']['embed']['w']}
    if not tied:
        tables['head'] = lambda tree: tree['llama']['head']['w'].T
    for table in tables.values():
        np.testing.assert_array_equal(table(found)[:120], table(params))
        np.testing.assert_allclose(table(found)[120:], np.tile(table(params).mean(0), (8, 1)), atol=1e-6)


def test_weights_are_cast_to_the_dtype(folder, tmp_path):
    report = export(folder, tmp_path / 'back', dtype='bfloat16')
    tensors = open_checkpoint(tmp_path / 'back')
    assert {tensor.dtype for tensor in tensors.values()} == {'bfloat16'}
    assert report.size == sum(tensor.nbytes for tensor in tensors.values())
    assert json.loads((tmp_path / 'back' / 'config.json').read_text())['torch_dtype'] == 'bfloat16'


def test_only_converted_folders_are_exported(source, tmp_path):
    with pytest.raises(CheckpointError, match=r'vipllava\.json: cannot be read'):
        export(source, tmp_path / 'back')


def test_quantized_weights_cannot_be_exported(folder, source, tmp_path):
    convert(source, tmp_path / 'int8', quantize='int8')
    with pytest.raises(CheckpointError, match='int8: quantized weights cannot be exported'):
        export(tmp_path / 'int8', tmp_path / 'back')
    assert not (tmp_path / 'back').exists()
