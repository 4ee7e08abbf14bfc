"""The config.json of a Hugging Face folder, of any era, and the Config it describes."""

from collections.abc import Mapping
from typing import Any

from vipllava_jax.config import FIVE_TAPS, Config, TextConfig, VisionConfig


def from_hugging_face(data: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Config:
    """The Config of a config.json and, if there is one, its generation_config.json.

    Raises ValueError, naming the field, for what is missing, malformed or not supported.
    """
    top = Fields(data)
    if top.get('model_type') is None:
        raise ValueError(
            "model_type: missing, expected 'vipllava' or 'llava': is this a model's config.json?"
        )
    top.require('model_type', 'vipllava', 'llava', 'llava_llama')
    top.require('projector_hidden_act', 'gelu')
    top.require('mm_projector_type', 'mlp2x_gelu')
    # The authors' own files are flat: a Llama's config with extras.
    text = top if top.get('hidden_size') and not top.get('text_config') else top.part('text_config')
    if text is not top:
        text.require('model_type', 'llama')
    vision = _vision(top.part('vision_config', {}))
    vip = data['model_type'] == 'vipllava' or top.number('mm_hidden_size', 0) > vision.width
    ids = (Fields(generation or {}), top, text)
    return Config(
        vision=vision,
        text=_text(text, tied=bool(top.get('tie_word_embeddings'))),
        feature_layers=_feature_layers(top, FIVE_TAPS if vip else (-2,)),
        projector_norm=vip,
        projector_eps=top.real('projector_layernorm_eps', 1e-5),
        image_token=top.number('image_token_index', top.number('image_token_id', 32000)),
        bos=_ids(ids, 'bos_token_id', 1)[0],
        eos=_ids(ids, 'eos_token_id', 2),
        pad=_ids(ids, 'pad_token_id', 0)[0],
    )


class Fields:
    """A JSON object that names the field that does not hold what is asked of it; null is absent."""

    def __init__(self, data: Mapping[str, Any], where: str = ''):
        self.data, self.where = data, where

    def get(self, name: str, default: Any = None) -> Any:
        value = self.data.get(name)
        return default if value is None else value

    def part(self, name: str, default: Mapping[str, Any] | None = None) -> 'Fields':
        value = self.get(name, default)
        if not isinstance(value, Mapping):
            raise self.error(name, value, 'an object')
        return Fields(value, f'{self.where}{name}.')

    def number(self, name: str, default: int) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.error(name, value, 'a whole number')
        return value

    def real(self, name: str, default: float) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise self.error(name, value, 'a positive number')
        return float(value)

    def numbers(self, name: str, default: int | tuple[int, ...]) -> tuple[int, ...]:
        value = self.get(name, default)
        listed = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not listed or not all(isinstance(i, int) and not isinstance(i, bool) for i in listed):
            raise self.error(name, value, 'a whole number or a list of them')
        return listed

    def require(self, name: str, *allowed: Any) -> None:
        value = self.get(name, allowed[0])
        if value not in allowed:
            names = ' or '.join(map(repr, allowed))
            raise ValueError(f'{self.where}{name}: {value!r} is not supported, only {names}')

    def error(self, name: str, value: Any, expected: str) -> ValueError:
        return ValueError(f'{self.where}{name}: expected {expected}, found {value!r}')


def _vision(fields: Fields) -> VisionConfig:
    fields.require('model_type', 'clip_vision_model')
    fields.require('hidden_act', 'quick_gelu')
    fields.require('num_channels', 3)
    default = VisionConfig()
    vision = VisionConfig(
        image_size=fields.number('image_size', default.image_size),
        patch_size=fields.number('patch_size', default.patch_size),
        width=fields.number('hidden_size', default.width),
        layers=fields.number('num_hidden_layers', default.layers),
        heads=fields.number('num_attention_heads', default.heads),
        mlp=fields.number('intermediate_size', default.mlp),
        eps=fields.real('layer_norm_eps', default.eps),
    )
    if not vision.patch_size or vision.image_size % vision.patch_size:
        raise fields.error('patch_size', vision.patch_size, f'a divisor of image_size {vision.image_size}')
    if not vision.heads or vision.width % vision.heads:
        raise fields.error('num_attention_heads', vision.heads, f'a divisor of hidden_size {vision.width}')
    return vision


def _text(fields: Fields, tied: bool) -> TextConfig:
    """Where the file is silent, transformers' defaults, which are not those of the published checkpoints."""
    fields.require('hidden_act', 'silu')
    fields.require('attention_bias', False)
    fields.require('mlp_bias', False)
    old, new = fields.part('rope_scaling', {}), fields.part('rope_parameters', {})
    for rope in (old, new):
        rope.require('rope_type', 'default')
        rope.require('type', 'default')
    width, heads = fields.number('hidden_size', 4096), fields.number('num_attention_heads', 32)
    kv_heads = fields.number('num_key_value_heads', heads)
    head_size = fields.number('head_dim', 0)
    if not heads or (not head_size and width % heads):
        raise fields.error('num_attention_heads', heads, f'a divisor of hidden_size {width}')
    if not kv_heads or heads % kv_heads:
        raise fields.error('num_key_value_heads', kv_heads, f'a divisor of num_attention_heads {heads}')
    return TextConfig(
        vocab=fields.number('vocab_size', 32000),
        width=width,
        layers=fields.number('num_hidden_layers', 32),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size or width // heads,
        mlp=fields.number('intermediate_size', 11008),
        eps=fields.real('rms_norm_eps', 1e-6),
        rope_theta=new.real('rope_theta', fields.real('rope_theta', 10000.0)),
        context=fields.number('max_position_embeddings', 2048),
        tied=tied or bool(fields.get('tie_word_embeddings')),
    )


def _feature_layers(fields: Fields, default: tuple[int, ...]) -> tuple[int, ...]:
    """Of the two names transformers lets the plural win."""
    name = 'vision_feature_layer' if fields.get('vision_feature_layers') is None else 'vision_feature_layers'
    return fields.numbers(name, default)


def _ids(places: tuple[Fields, ...], name: str, default: int) -> tuple[int, ...]:
    """The ids of the first place that has any."""
    return next(
        (fields.numbers(name, default) for fields in places if fields.get(name) is not None), (default,)
    )


def to_hugging_face(cfg: Config) -> dict[str, Any]:
    """The config.json that every transformers with this model reads."""
    vision, text = cfg.vision, cfg.text
    vip = cfg.projector_norm
    taps: list[int] | int = (
        list(cfg.feature_layers) if vip or len(cfg.feature_layers) > 1 else cfg.feature_layers[0]
    )
    return {
        'architectures': ['VipLlavaForConditionalGeneration' if vip else 'LlavaForConditionalGeneration'],
        'model_type': 'vipllava' if vip else 'llava',
        'image_token_index': cfg.image_token,
        'image_seq_length': vision.patches,
        'projector_hidden_act': 'gelu',
        'projector_layernorm_eps': cfg.projector_eps,
        **({'vision_feature_layers': taps} if vip else {'vision_feature_select_strategy': 'default'}),
        'vision_feature_layer': taps,  # the name since transformers 5.23; the plural is the one before
        'tie_word_embeddings': text.tied,
        'bos_token_id': cfg.bos,
        'eos_token_id': _one_or_list(cfg.eos),
        'pad_token_id': cfg.pad,
        'vision_config': {
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
        },
        'text_config': {
            'model_type': 'llama',
            'vocab_size': text.vocab,
            'hidden_size': text.width,
            'num_hidden_layers': text.layers,
            'num_attention_heads': text.heads,
            'num_key_value_heads': text.kv_heads,
            'head_dim': text.head_size,
            'intermediate_size': text.mlp,
            'rms_norm_eps': text.eps,
            'rope_theta': text.rope_theta,  # transformers 4 reads this one,
            'rope_parameters': {'rope_type': 'default', 'rope_theta': text.rope_theta},  # and 5 this
            'max_position_embeddings': text.context,
            'tie_word_embeddings': text.tied,
            'hidden_act': 'silu',
            'bos_token_id': cfg.bos,
            'eos_token_id': _one_or_list(cfg.eos),
            'pad_token_id': cfg.pad,
        },
    }


def _one_or_list(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)
