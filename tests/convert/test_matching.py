"""Tensors and leaves are matched: every tensor is used or listed, and all mismatches are named."""

import dataclasses
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.convert.layouts import PREFIXES, TIED, stored
from vipllava_jax.config import VIP_LLAVA_7B, VIP_LLAVA_13B
from vipllava_jax.convert.matching import match_tensors
from vipllava_jax.convert.table import leaves
from vipllava_jax.convert.tensors import Tensor, dense
from vipllava_jax.hugging_face import from_hugging_face
from vipllava_jax.messages import CheckpointError


@pytest.mark.parametrize('layout', PREFIXES)
def test_every_tensor_is_used_once_or_listed_as_unused(layout):
    extra = {
        **{f'model.layers.{i}.self_attn.rotary_emb.inv_freq': 'float32' for i in range(3)},
        'vision_tower.vision_model.embeddings.position_ids': 'int64',
        'text_model.encoder.layers.0.mlp.fc1.weight': 'float32',
        'text_model.embeddings.position_ids': 'int64',
        'visual_projection.weight': 'float32',
        'text_projection.weight': 'float32',
        'logit_scale': 'float32',
    }
    tensors = stored(TINY, layout) | {
        name: Tensor(Path('x'), 0, dtype, (1,), (1,)) for name, dtype in extra.items()
    }
    plan = match_tensors(tensors, TINY, 'here')
    assert plan.unused == tuple(sorted(extra))
    assert len(plan.pairs) == len(list(leaves(TINY)))
    places = [tensor.place for _, tensor in plan.pairs]
    assert places == sorted(places)


def test_the_weights_take_precedence_over_the_published_config():
    config = {
        'model_type': 'vipllava',
        'vision_feature_layer': -2,
        'projector_layernorm': False,
        'text_config': {'model_type': 'llama', 'vocab_size': 32064, 'max_position_embeddings': 4096},
        'vision_config': {'model_type': 'clip_vision_model', 'intermediate_size': 4096},
    }
    cfg = from_hugging_face(config)
    assert cfg.feature_layers == (-2,)
    plan = match_tensors(stored(VIP_LLAVA_7B), cfg, 'here')
    assert plan.cfg.feature_layers == (-2, -5, -8, -11, 6)
    assert plan.cfg.projector_norm


def test_the_authors_13b_checkpoint_is_matched():
    config = {
        **{'model_type': 'llava', 'hidden_size': 5120, 'intermediate_size': 13824, 'num_attention_heads': 40},
        **{'num_hidden_layers': 40, 'num_key_value_heads': 40, 'mm_hidden_size': 5120, 'vocab_size': 32000},
        **{'mm_projector_type': 'mlp2x_gelu', 'mm_vision_select_layer': -2, 'rms_norm_eps': 1e-5},
    }
    text = dataclasses.replace(VIP_LLAVA_13B.text, vocab=32000)
    tensors = stored(dataclasses.replace(VIP_LLAVA_13B, text=text), '(c) the authors')
    plan = match_tensors(tensors, from_hugging_face(config), 'here')
    assert plan.cfg.feature_layers == (-2, -5, -8, -11, 6)
    assert len(plan.pairs) == len(tensors) == 760


def test_all_faults_are_reported_together_by_name():
    tensors = stored(TINY)
    for i in (0, 1, 2):
        del tensors[f'language_model.model.layers.{i}.mlp.up_proj.weight']
    del tensors['vision_tower.vision_model.encoder.layers.4.layer_norm1.bias']
    norm = tensors['language_model.model.norm.weight']
    tensors['language_model.model.norm.weight'] = dataclasses.replace(norm, shape=(7,))
    tensors['lm_head.weight'] = tensors['language_model.lm_head.weight']
    tensors['model.norm.q_norm'] = norm
    embed = tensors['language_model.model.embed_tokens.weight']
    tensors['language_model.model.embed_tokens.weight'] = dataclasses.replace(embed, dtype='int8')
    with pytest.raises(CheckpointError) as message:
        match_tensors(tensors, TINY, 'here')
    for words in (
        'here: ',
        'missing: language_model.model.layers.{0-2}.mlp.up_proj.weight and 1 more;',
        'unknown: model.norm.q_norm;',
        'stored twice: language_model.lm_head.weight and lm_head.weight;',
        'language_model.model.norm.weight [7] instead of [48]',
        'language_model.model.embed_tokens.weight (int8)',
    ):
        assert words in str(message.value)
    assert '\n' not in str(message.value)


def test_a_base_model_without_a_head_is_refused():
    tensors = stored(TINY)
    del tensors['language_model.lm_head.weight']
    with pytest.raises(
        CheckpointError, match=r'missing: language_model.lm_head.weight\. A model saved without its head'
    ):
        match_tensors(tensors, TINY, 'here')
    assert match_tensors(tensors, TIED, 'here').cfg.text.tied


def test_a_head_equal_to_the_embeddings_is_unused():
    tensors = stored(TINY)
    head, embed = 'language_model.lm_head.weight', 'language_model.model.embed_tokens.weight'
    assert not match_tensors(tensors, TIED, 'here').cfg.text.tied
    plan = match_tensors(tensors | {head: tensors[embed]}, TIED, 'here')
    assert plan.cfg.text.tied
    assert plan.unused == (head,)


def test_a_checkpoint_without_a_vision_tower_is_refused():
    tensors = {name: tensor for name, tensor in stored(TINY).items() if 'vision' not in name}
    with pytest.raises(
        CheckpointError, match='class_embedding.* and .* more. The vision tower is not in this'
    ):
        match_tensors(tensors, TINY, 'here')


def test_a_projector_width_that_fits_no_taps_is_refused():
    shape = (48, 33)
    tensors = stored(TINY, **{'projector/linear_1/w': dict(shape=shape, strides=dense(shape))})
    with pytest.raises(CheckpointError, match='here: vision_feature_layers: .* takes 33'):
        match_tensors(tensors, TINY, 'here')


def test_a_missing_norm_is_not_mistaken_for_a_model_without_one():
    tensors = {name: tensor for name, tensor in stored(TINY).items() if 'projector_layernorm' not in name}
    with pytest.raises(
        CheckpointError, match='missing: multi_modal_projector.projector_layernorm.bias, multi'
    ):
        match_tensors(tensors, TINY, 'here')


@pytest.mark.parametrize('layers', [0, 1, 2, 4, 512])
def test_the_config_and_the_files_differ_on_layers(layers):
    tensors = stored(TINY)
    text = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, layers=layers))
    with pytest.raises(
        CheckpointError, match=f'layers of the decoder: config.json says {layers}, the files hold 3;'
    ):
        match_tensors(tensors, text, 'here')
    vision = dataclasses.replace(TINY, vision=dataclasses.replace(TINY.vision, layers=13))
    with pytest.raises(
        CheckpointError, match='layers of the vision tower: config.json says 13, the files hold 12;'
    ):
        match_tensors(tensors, vision, 'here')


def test_a_layer_that_is_missing_in_the_middle():
    tensors = {name: tensor for name, tensor in stored(TINY).items() if 'model.layers.1.' not in name}
    with pytest.raises(
        CheckpointError, match='config.json says 3, the files hold 2; missing: .*layers.1.input_lay'
    ):
        match_tensors(tensors, TINY, 'here')


@pytest.mark.parametrize('number', ['999999999', '9' * 500, '01', '-1', '٣', '1e3', ''])
def test_a_layer_with_an_invalid_number_is_unknown(number):
    tensors = stored(TINY)
    name = f'language_model.model.layers.{number}.mlp.up_proj.weight'
    tensors[name] = tensors['lm_head' if 'lm_head' in tensors else 'language_model.lm_head.weight']
    with pytest.raises(
        CheckpointError, match='the files hold 4; unknown: language_model.model.layers.'
    ) as message:
        match_tensors(tensors, TINY, 'here')
    assert len(str(message.value)) <= 500


def test_messages_are_short_and_printable():
    some = stored(TINY)['language_model.lm_head.weight']
    unknown = {f'\x1b[31m{"x" * 900}\u202e{i}': some for i in range(3000)}
    unknown |= {f'a.{i}.qkv.bias': some for i in range(3000)}
    for tensors in (unknown, stored(TINY) | unknown, {}, {'x\n': some}):
        with pytest.raises(CheckpointError) as message:
            match_tensors(tensors, TINY, 'here')
        assert len(str(message.value)) <= 500
        assert str(message.value).isprintable()
    assert ' and 36 more; unknown: x' in str(message.value)


def test_unused_names_are_printable():
    some = stored(TINY)['language_model.lm_head.weight']
    plan = match_tensors(stored(TINY) | {'text_model.\x1b[31mred': some}, TINY, 'here')
    assert plan.unused == ('text_model.\\x1b[31mred',)


@pytest.mark.parametrize('dtype', ['complex64', 'float8_e4m3fn', 'float4_e2m1fn', 'int64', 'bool', 'float64'])
def test_unsupported_dtypes_are_refused(dtype):
    tensors = stored(TINY, **{'llama/norm/w': dict(dtype=dtype)})
    with pytest.raises(CheckpointError, match=f'of a type other than .*: .*norm.weight .{dtype}.') as message:
        match_tensors(tensors, TINY, 'here')
    assert ('take the original and --quantize int8' in str(message.value)) == ('8' in dtype or '4_' in dtype)


def test_views_that_would_fill_the_memory_are_refused():
    """A file could claim that all weights of a model are views of the same few bytes."""
    tensors = {name: dataclasses.replace(tensor, offset=0) for name, tensor in stored(TINY).items()}
    with pytest.raises(CheckpointError, match='here: .* bytes of weights are repeated views of .* bytes'):
        match_tensors(tensors, TINY, 'here')
    embed = 'language_model.model.embed_tokens.weight'
    repeated = stored(TINY)
    for name in (embed, 'language_model.lm_head.weight'):
        repeated[name] = dataclasses.replace(repeated[name], strides=(0, 1))
    match_tensors(repeated, TINY, 'here')  # a few such views are allowed
    spread = stored(TINY) | {embed: dataclasses.replace(repeated[embed], strides=(1 << 40, 1))}
    with pytest.raises(CheckpointError, match='is spread over'):
        match_tensors(spread, TINY, 'here')
