"""Reads config.json of every known version, and refuses unsupported fields."""

import dataclasses

import pytest

import vipllava_jax as vj
from vipllava_jax.config import FIVE_TAPS, Config
from vipllava_jax.hugging_face import from_hugging_face, to_hugging_face

PUBLISHED_7B = {  # wrong in three fields: the weights have five layers and a layernorm
    'architectures': ['VipLlavaForConditionalGeneration'],
    'ignore_index': -100,
    'image_token_index': 32000,
    'model_type': 'vipllava',
    'pad_token_id': 32001,
    'projector_hidden_act': 'gelu',
    'projector_layernorm': False,
    'projector_layernorm_eps': 1e-05,
    'text_config': {
        '_name_or_path': 'lmsys/vicuna-7b-v1.5',
        'architectures': ['LlamaForCausalLM'],
        'max_position_embeddings': 4096,
        'model_type': 'llama',
        'pad_token_id': 0,
        'rms_norm_eps': 1e-05,
        'torch_dtype': 'float16',
        'vocab_size': 32064,
    },
    'torch_dtype': 'float16',
    'vision_config': {
        'hidden_size': 1024,
        'image_size': 336,
        'intermediate_size': 4096,
        'model_type': 'clip_vision_model',
        'num_attention_heads': 16,
        'num_hidden_layers': 24,
        'patch_size': 14,
        'projection_dim': 768,
        'vocab_size': 32000,
    },
    'vision_feature_layer': -2,
    'vision_feature_select_strategy': 'default',
    'vocab_size': 32064,
}
AUTHORS_13B = {
    'architectures': ['LlavaLlamaForCausalLM'],
    'model_type': 'llava',
    'hidden_size': 5120,
    'intermediate_size': 13824,
    'num_hidden_layers': 40,
    'num_attention_heads': 40,
    'num_key_value_heads': 40,
    'max_position_embeddings': 4096,
    'mm_hidden_size': 5120,
    'mm_projector_type': 'mlp2x_gelu',
    'mm_vision_select_layer': -2,
    'mm_vision_tower': 'clip_4layers_336',
    'rms_norm_eps': 1e-05,
    'rope_scaling': None,
    'hidden_act': 'silu',
    'pad_token_id': 0,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'tie_word_embeddings': False,
    'vocab_size': 32000,
}


def published(**fields) -> dict:
    data = {**PUBLISHED_7B, **fields}
    return {name: value for name, value in data.items() if value is not None}


def with_text(**fields) -> dict:
    return published(text_config={**PUBLISHED_7B['text_config'], **fields})


def test_the_published_7b_with_its_projector_equals_the_preset():
    cfg = from_hugging_face(PUBLISHED_7B, {'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 32001})
    assert cfg.feature_layers == (-2,)
    assert cfg.with_projector(5120, norm=True) == vj.VIP_LLAVA_7B


def test_the_authors_13b_has_the_five_layers_of_its_tower():
    expected = dataclasses.replace(vj.VIP_LLAVA_13B.text, vocab=32000)
    assert from_hugging_face(AUTHORS_13B) == dataclasses.replace(vj.VIP_LLAVA_13B, text=expected, pad=0)
    llava = {**AUTHORS_13B, 'mm_hidden_size': 1024}
    assert from_hugging_face(llava).feature_layers == (-2,)
    assert not from_hugging_face(llava).projector_norm


@pytest.mark.parametrize(
    ('fields', 'expected'),
    [
        ({'vision_feature_layer': None}, FIVE_TAPS),
        ({'vision_feature_layer': -3}, (-3,)),
        ({'vision_feature_layer': 0}, (0,)),
        ({'vision_feature_layer': [-2, 4]}, (-2, 4)),
        ({'vision_feature_layers': [-2, -5], 'vision_feature_layer': 7}, (-2, -5)),
        ({'vision_feature_layers': -4, 'vision_feature_layer': None}, (-4,)),
        ({'vision_feature_layer': None, 'model_type': 'llava'}, (-2,)),
    ],
)
def test_feature_layers_are_read_from_every_version_of_transformers(fields, expected):
    assert from_hugging_face(published(**fields)).feature_layers == expected


def test_the_projector_determines_the_feature_layers():
    two = from_hugging_face(published(vision_feature_layers=[3, 4]))
    assert two.with_projector(2048, norm=True).feature_layers == (3, 4)
    assert two.with_projector(1024, norm=False).feature_layers == (-2,)
    with pytest.raises(ValueError, match=r'vision_feature_layers: \[3, 4\] .* of 2048, but .* takes 3072'):
        two.with_projector(3072, norm=True)


def test_rope_theta_is_read_from_both_places():
    assert from_hugging_face(with_text(rope_theta=5e5)).text.rope_theta == 5e5
    new = {'rope_theta': 2e4, 'rope_type': 'default'}
    assert from_hugging_face(with_text(rope_parameters=new)).text.rope_theta == 2e4
    assert from_hugging_face(PUBLISHED_7B).text.rope_theta == 1e4


def test_text_fields_are_read():
    text = from_hugging_face(with_text(num_key_value_heads=8, head_dim=64, tie_word_embeddings=True)).text
    assert (text.kv_heads, text.head_size, text.tied) == (8, 64, True)
    assert text.sizes['G'] == 4
    assert from_hugging_face(published(tie_word_embeddings=True)).text.tied
    assert from_hugging_face(PUBLISHED_7B, {'eos_token_id': [2, 7]}).eos == (2, 7)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        ({}, 'model_type: missing'),
        (
            {'model_type': 'llava_next'},
            "model_type: 'llava_next' is not supported, only 'vipllava' or 'llava'",
        ),
        (with_text(model_type='phi3'), r"text_config\.model_type: 'phi3' is not supported, only 'llama'"),
        (with_text(hidden_act='gelu'), r"text_config\.hidden_act: 'gelu'"),
        (with_text(attention_bias=True), r'text_config\.attention_bias: True'),
        (with_text(mlp_bias=True), r'text_config\.mlp_bias: True'),
        (
            with_text(rope_scaling={'type': 'linear', 'factor': 2.0}),
            r"text_config\.rope_scaling\.type: 'linear'",
        ),
        (
            with_text(rope_parameters={'rope_type': 'llama3'}),
            r"text_config\.rope_parameters\.rope_type: 'llama3'",
        ),
        (with_text(num_attention_heads=30), r'text_config\.num_attention_heads'),
        (with_text(num_key_value_heads=5), r'text_config\.num_key_value_heads'),
        (published(projector_hidden_act='relu'), "projector_hidden_act: 'relu'"),
        (published(vision_config={'hidden_act': 'gelu'}), r"vision_config\.hidden_act: 'gelu'"),
        (published(vision_config={'model_type': 'siglip'}), r"vision_config\.model_type: 'siglip'"),
        (
            published(vision_config={'patch_size': 0}),
            r'vision_config\.patch_size: expected a whole number from 1',
        ),
        (published(vision_config={'image_size': 30}), r'vision_config\.patch_size: expected a divisor'),
        (published(vision_feature_layer=25), 'vision_feature_layer: 25 is outside a tower of 24 layers'),
        (published(vision_feature_layers='last'), "vision_feature_layers: expected .* found 'last'"),
        (
            with_text(vocab_size='many'),
            r"text_config\.vocab_size: expected a whole number from 1 .* found 'many'",
        ),
        (published(text_config=None), 'text_config: expected an object'),
        (published(text_config=3), 'text_config: expected an object, found 3'),
        (published(vision_feature_select_strategy='full'), "vision_feature_select_strategy: 'full'"),
        (published(vision_feature_select_strategy='full', model_type='llava'), "_strategy: 'full'"),
        (AUTHORS_13B | {'mm_vision_select_feature': 'cls_patch'}, "mm_vision_select_feature: 'cls_patch'"),
        (AUTHORS_13B | {'mm_use_im_start_end': True}, 'mm_use_im_start_end: True'),
        (AUTHORS_13B | {'image_aspect_ratio': 'anyres'}, "image_aspect_ratio: 'anyres'"),
        (AUTHORS_13B | {'image_aspect_ratio': 'anyres_max_9'}, "image_aspect_ratio: 'anyres_max_9'"),
        (AUTHORS_13B | {'mm_projector_type': 'linear'}, "mm_projector_type: 'linear'"),
        (AUTHORS_13B | {'mm_projector_type': 'identity'}, "mm_projector_type: 'identity'"),
        (AUTHORS_13B | {'mm_patch_merge_type': 'spatial_unpad'}, 'mm_patch_merge_type'),
        (AUTHORS_13B | {'mm_hidden_size': 1024, 'mm_vision_select_layer': 'last'}, 'mm_vision_select_layer'),
        (
            AUTHORS_13B | {'mm_hidden_size': 1024, 'mm_vision_select_layer': -99},
            'mm_vision_select_layer: -99',
        ),
        (published(multimodal_projector_bias=False), 'multimodal_projector_bias'),
        (published(tie_word_embeddings='false'), "tie_word_embeddings: .* true or false, found 'false'"),
    ],
)
def test_unsupported_variants_are_named(data, message):
    with pytest.raises(ValueError, match=message):
        from_hugging_face(data)


def test_a_llava_config_of_the_authors_names_its_layer():
    llava = AUTHORS_13B | {'mm_hidden_size': 1024}
    assert from_hugging_face(llava | {'mm_vision_select_layer': -3}).feature_layers == (-3,)
    assert from_hugging_face(llava | {'mm_vision_select_layer': -1}).feature_layers == (-1,)
    stale = from_hugging_face(AUTHORS_13B | {'mm_vision_select_layer': -1})
    assert stale.feature_layers == FIVE_TAPS
    without_width = {name: value for name, value in AUTHORS_13B.items() if name != 'mm_hidden_size'}
    assert from_hugging_face(without_width).with_projector(5120, norm=True).feature_layers == FIVE_TAPS


NO_NUMBERS = (
    10**400,
    10**19,
    -5,
    True,
    1.5,
    float('nan'),
    float('inf'),
    'x' * 10**6,
    [[1]],
    [1] * 10**6,
    {'a': 1},
)
TEXT = (
    *('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'num_key_value_heads'),
    *('head_dim', 'vocab_size', 'max_position_embeddings', 'bos_token_id', 'eos_token_id'),
)
VISION = (
    *('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads'),
    *('image_size', 'patch_size'),
)


@pytest.mark.parametrize('value', NO_NUMBERS, ids=lambda value: repr(value)[:12])
def test_invalid_numbers_are_errors_that_name_the_field(value):
    configs = [(name, AUTHORS_13B | {name: value}) for name in (*TEXT, 'pad_token_id', 'mm_hidden_size')]
    configs += [(f'text_config.{name}', with_text(**{name: value})) for name in TEXT]
    configs += [
        (f'vision_config.{name}', published(vision_config=PUBLISHED_7B['vision_config'] | {name: value}))
        for name in VISION
    ]
    configs += [(name, published(**{name: value})) for name in ('image_token_index', 'pad_token_id')]
    for name, config in configs:
        with pytest.raises(ValueError, match=name) as caught:
            from_hugging_face(config)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -1.0, 0, 10**400, True, '1e-5', [1e-5]])
def test_invalid_real_numbers_are_errors_that_name_the_field(value):
    for part, name in (
        *(('text_config', 'rms_norm_eps'), ('text_config', 'rope_theta')),
        *(('vision_config', 'layer_norm_eps'), (None, 'projector_layernorm_eps')),
    ):
        data = published() | ({name: value} if part is None else {part: PUBLISHED_7B[part] | {name: value}})
        with pytest.raises(ValueError, match=f'{name}: expected a positive number'):
            from_hugging_face(data)


def test_minus_one_means_no_id():
    assert from_hugging_face(published(pad_token_id=-1), {'pad_token_id': -1}).pad == 0
    with pytest.raises(ValueError, match='eos_token_id'):
        from_hugging_face(published(eos_token_id=[2, -7]))
    with pytest.raises(ValueError, match='eos_token_id: .*40000.* is beyond the vocab_size of 32064'):
        from_hugging_face(published(eos_token_id=[40000, 40001]))


@pytest.mark.parametrize(
    'cfg',
    [
        vj.VIP_LLAVA_7B,
        vj.VIP_LLAVA_13B,
        Config(feature_layers=(-2,), projector_norm=False, eos=(2, 3)),
        Config(
            feature_layers=(3,),
            text=dataclasses.replace(vj.VIP_LLAVA_7B.text, tied=True, rope_theta=5e5, kv_heads=8),
        ),
    ],
)
def test_a_config_survives_writing_and_reading(cfg):
    assert from_hugging_face(to_hugging_face(cfg)) == cfg


@pytest.mark.parity
def test_transformers_reads_what_we_write(tmp_path):
    import json

    from transformers import AutoConfig

    cfg = dataclasses.replace(
        vj.VIP_LLAVA_13B,
        text=dataclasses.replace(vj.VIP_LLAVA_13B.text, rope_theta=5e5, kv_heads=8, head_size=64, eps=1e-4),
        feature_layers=(-2, 3),
    )
    (tmp_path / 'config.json').write_text(json.dumps(to_hugging_face(cfg)))
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.vision_feature_layer == [-2, 3]
    assert theirs.text_config.rope_parameters['rope_theta'] == 5e5
    assert theirs.text_config.num_key_value_heads == 8
    assert theirs.text_config.head_dim == 64
    assert from_hugging_face(theirs.to_dict()) == cfg
