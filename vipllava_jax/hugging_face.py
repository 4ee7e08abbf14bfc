"""Converts between Config and the config.json of Hugging Face checkpoints of any transformers version."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vipllava_jax.config import FIVE_TAPS, Config, TextConfig, VisionConfig, check_feature_layers
from vipllava_jax.files import read_json
from vipllava_jax.json_fields import LARGEST_NUMBER, Fields
from vipllava_jax.messages import CheckpointError, brief

# Far above every published model; larger numbers are a mistake or an attack.
MAX_LAYERS, MAX_HEADS = 512, 1024
WIDEST, LARGEST_VOCABULARY, LONGEST_CONTEXT = 1 << 18, 1 << 22, 1 << 28
LARGEST_PICTURE = 8192  # pixels per side


def read_config(folder: Path, content: Mapping[str, Any] | None = None) -> Config:
    """The Config of a folder, converted or PyTorch; raises CheckpointError if it is not valid.

    `content` is that of its config.json if the caller has read it.
    """
    generation = folder / 'generation_config.json'
    content = content or read_json(folder / 'config.json')
    try:
        return from_hugging_face(content, read_json(generation) if generation.exists() else None)
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f'{folder / "config.json"}: {error}') from None


def from_hugging_face(data: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Config:
    """The Config of a config.json and, if there is one, a generation_config.json.

    Raises ValueError, naming the field, if a field is missing, malformed or not supported.
    """
    top = Fields(data)
    if top.get('model_type') is None:
        raise ValueError(
            "model_type: missing, expected 'vipllava' or 'llava': is this a model's config.json?"
        )
    top.require('model_type', 'vipllava', 'llava', 'llava_llama')
    top.require('projector_hidden_act', 'gelu')
    _require_patch_features(top)
    # The files of the ViP-LLaVA authors are flat: a Llama config with additional fields.
    flat = bool(top.get('hidden_size')) and not top.get('text_config')
    text = top if flat else top.part('text_config')
    if not flat:
        text.require('model_type', 'llama')
    vision = _vision(top.part('vision_config', {}))
    vip = data['model_type'] == 'vipllava' or top.number('mm_hidden_size', 0, maximum=WIDEST) > vision.width
    ids = (Fields(generation or {}, 'generation_config.json: '), top, text)
    llama = _text(text, tied=top.flag('tie_word_embeddings'))
    eos = _ids(ids, 'eos_token_id', 2)
    if min(eos) >= llama.vocab:
        raise ValueError(
            f'eos_token_id: {brief(eos)} is beyond the vocab_size of {llama.vocab}: no answer would end'
        )
    return Config(
        vision=vision,
        text=llama,
        feature_layers=_feature_layers(top, vision.layers, flat, vip),
        projector_norm=vip,
        projector_eps=top.real('projector_layernorm_eps', 1e-5),
        image_token=top.number('image_token_index', top.number('image_token_id', 32000)),
        bos=_ids(ids, 'bos_token_id', 1)[0],
        eos=eos,
        pad=_ids(ids, 'pad_token_id', 0)[0],
    )


def _require_patch_features(fields: Fields) -> None:
    """Raises ValueError if the config is that of a LLaVA variant whose image features are not supported.

    The variants share a model_type. Only the original is supported: the patches of one square image, without
    the class token, pass through an MLP and replace `<image>` in the prompt.
    """
    fields.require('vision_feature_select_strategy', 'default')
    fields.require('mm_vision_select_feature', 'patch')
    fields.require('mm_projector_type', 'mlp2x_gelu')
    fields.require('mm_use_im_start_end', False)
    fields.require('mm_patch_merge_type', 'flat')
    fields.require('image_aspect_ratio', 'pad', 'square')
    fields.require('multimodal_projector_bias', True)


def _vision(fields: Fields) -> VisionConfig:
    fields.require('model_type', 'clip_vision_model')
    fields.require('hidden_act', 'quick_gelu')
    fields.require('num_channels', 3)
    default = VisionConfig()
    vision = VisionConfig(
        image_size=fields.number('image_size', default.image_size, minimum=1, maximum=LARGEST_PICTURE),
        patch_size=fields.number('patch_size', default.patch_size, minimum=1, maximum=LARGEST_PICTURE),
        width=fields.number('hidden_size', default.width, minimum=1, maximum=WIDEST),
        layers=fields.number('num_hidden_layers', default.layers, maximum=MAX_LAYERS),
        heads=fields.number('num_attention_heads', default.heads, minimum=1, maximum=MAX_HEADS),
        mlp=fields.number('intermediate_size', default.mlp, minimum=1, maximum=WIDEST),
        eps=fields.real('layer_norm_eps', default.eps),
    )
    if vision.image_size % vision.patch_size or vision.patches > LARGEST_PICTURE:
        raise fields.error('patch_size', vision.patch_size, f'a divisor of image_size {vision.image_size}')
    if vision.width % vision.heads:
        raise fields.error('num_attention_heads', vision.heads, f'a divisor of hidden_size {vision.width}')
    return vision


def _text(fields: Fields, tied: bool) -> TextConfig:
    """The TextConfig of the fields; the defaults are those of transformers, not of published checkpoints."""
    fields.require('hidden_act', 'silu')
    fields.require('attention_bias', False)
    fields.require('mlp_bias', False)
    old, new = fields.part('rope_scaling', {}), fields.part('rope_parameters', {})
    for rope in (old, new):
        rope.require('rope_type', 'default')
        rope.require('type', 'default')
    width = fields.number('hidden_size', 4096, minimum=1, maximum=WIDEST)
    heads = fields.number('num_attention_heads', 32, minimum=1, maximum=MAX_HEADS)
    kv_heads = fields.number('num_key_value_heads', heads, minimum=1, maximum=MAX_HEADS)
    head_size = fields.number('head_dim', 0, maximum=WIDEST)
    if not head_size and width % heads:
        raise fields.error('num_attention_heads', heads, f'a divisor of hidden_size {width}')
    if heads % kv_heads:
        raise fields.error('num_key_value_heads', kv_heads, f'a divisor of num_attention_heads {heads}')
    return TextConfig(
        vocab=fields.number('vocab_size', 32000, minimum=1, maximum=LARGEST_VOCABULARY),
        width=width,
        layers=fields.number('num_hidden_layers', 32, maximum=MAX_LAYERS),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size or width // heads,
        mlp=fields.number('intermediate_size', 11008, minimum=1, maximum=WIDEST),
        eps=fields.real('rms_norm_eps', 1e-6),
        rope_theta=new.real('rope_theta', fields.real('rope_theta', 10000.0)),
        context=fields.number('max_position_embeddings', 2048, minimum=1, maximum=LONGEST_CONTEXT),
        tied=tied or fields.flag('tie_word_embeddings'),
    )


def _feature_layers(fields: Fields, layers: int, flat: bool, vip: bool) -> tuple[int, ...]:
    """The feature layers of a config; as in transformers, the plural name takes precedence.

    The authors' LLaVA uses mm_vision_select_layer; their ViP-LLaVA also has that field, but ignores it.
    """
    names = ['vision_feature_layers', 'vision_feature_layer']
    if flat and not vip:
        names.append('mm_vision_select_layer')
    name = next((name for name in names if fields.get(name) is not None), names[0])
    taps = fields.numbers(name, FIVE_TAPS if vip else -2)
    if fields.get(name) is not None:
        check_feature_layers(taps, layers, name)
    return taps


def _ids(places: tuple[Fields, ...], name: str, default: int) -> tuple[int, ...]:
    """The ids in the first place that has any, or the default; some Llama configs use -1 for no id."""
    for fields in places:
        if fields.get(name, -1) not in (-1, [-1]):
            ids = fields.numbers(name, default)
            if min(ids) < 0:
                raise fields.error(name, fields.get(name), f'ids from 0 to {LARGEST_NUMBER}')
            return ids
    return (default,)


def to_hugging_face(cfg: Config) -> dict[str, Any]:
    """The content of a config.json that every version of transformers that has this model can read."""
    vip = cfg.projector_norm
    taps: list[int] | int = (
        list(cfg.feature_layers) if vip or len(cfg.feature_layers) > 1 else cfg.feature_layers[0]
    )
    ids = {'bos_token_id': cfg.bos, 'eos_token_id': _one_or_list(cfg.eos), 'pad_token_id': cfg.pad}
    return {
        'architectures': ['VipLlavaForConditionalGeneration' if vip else 'LlavaForConditionalGeneration'],
        'model_type': 'vipllava' if vip else 'llava',
        'image_token_index': cfg.image_token,
        'image_seq_length': cfg.vision.patches,
        'projector_hidden_act': 'gelu',
        'projector_layernorm_eps': cfg.projector_eps,
        **({'vision_feature_layers': taps} if vip else {'vision_feature_select_strategy': 'default'}),
        'vision_feature_layer': taps,  # read since transformers 5.23; earlier versions read the plural
        'tie_word_embeddings': cfg.text.tied,
        **ids,
        'vision_config': _vision_fields(cfg.vision),
        'text_config': {**_text_fields(cfg.text), **ids},
    }


def _vision_fields(vision: VisionConfig) -> dict[str, Any]:
    return {
        'model_type': 'clip_vision_model',
        'image_size': vision.image_size,
        'patch_size': vision.patch_size,
        'hidden_size': vision.width,
        'num_hidden_layers': vision.layers,
        'num_attention_heads': vision.heads,
        'intermediate_size': vision.mlp,
        'layer_norm_eps': vision.eps,
        'hidden_act': 'quick_gelu',
        'projection_dim': 768,
    }


def _text_fields(text: TextConfig) -> dict[str, Any]:
    return {
        'model_type': 'llama',
        'vocab_size': text.vocab,
        'hidden_size': text.width,
        'num_hidden_layers': text.layers,
        'num_attention_heads': text.heads,
        'num_key_value_heads': text.kv_heads,
        'head_dim': text.head_size,
        'intermediate_size': text.mlp,
        'rms_norm_eps': text.eps,
        # transformers 4 reads rope_theta, transformers 5 reads rope_parameters
        'rope_theta': text.rope_theta,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': text.rope_theta},
        'max_position_embeddings': text.context,
        'tie_word_embeddings': text.tied,
        'hidden_act': 'silu',
    }


def _one_or_list(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)
