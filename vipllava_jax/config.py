"""The alphabet, and what a checkpoint's config.json says in it.

One letter names an axis everywhere: in the equations, the shapes of weights and the layouts of files.

    B batch            T query token     S key slot          L layers
    D width            N query heads     K key/value heads   G = N/K query heads of a key/value head
    H head size        F mlp             V vocabulary        M the tapped widths, concatenated
    P patches, class token first         C channels of a patch, (y, x, colour)      I images of a row
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FIVE_TAPS = (-2, -5, -8, -11, 6)  # of ViP-LLaVA, in the order in which they are concatenated
Attention = Literal['xla', 'cudnn']


@dataclass(frozen=True)
class VisionConfig:
    """A CLIP vision tower; the defaults are ViT-L/14 at 336 pixels."""

    image_size: int = 336
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp: int = 4096
    eps: float = 1e-5

    @property
    def patches(self) -> int:
        """How many tokens an image becomes (the class token is not one of them)."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def sizes(self) -> dict[str, int]:
        return dict(
            P=self.patches + 1,
            C=3 * self.patch_size**2,
            D=self.width,
            N=self.heads,
            H=self.width // self.heads,
            F=self.mlp,
        )


@dataclass(frozen=True)
class TextConfig:
    """A Llama decoder; the defaults are the 7B's."""

    vocab: int = 32064
    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_size: int = 128
    mlp: int = 11008
    eps: float = 1e-5
    rope_theta: float = 10000.0
    context: int = 4096  # the most tokens of prompt and answer together
    tied: bool = False  # the head is the embedding

    @property
    def sizes(self) -> dict[str, int]:
        return dict(
            V=self.vocab,
            D=self.width,
            N=self.heads,
            K=self.kv_heads,
            G=self.heads // self.kv_heads,
            H=self.head_size,
            F=self.mlp,
        )


@dataclass(frozen=True)
class Config:
    """What a model is: two towers, the layers tapped between them, and the ids with a meaning."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    feature_layers: tuple[int, ...] = FIVE_TAPS  # 0 is the embedding, i the output of block i, -1 the last
    projector_norm: bool = True  # LLaVA-1.5 has none
    projector_eps: float = 1e-5
    image_token: int = 32000
    bos: int = 1
    eos: tuple[int, ...] = (2,)
    pad: int = 32001
    attention: Attention | None = None  # None: cuDNN where it can, XLA elsewhere

    def __post_init__(self) -> None:
        for i in self.feature_layers:
            if not -self.vision.layers - 1 <= i <= self.vision.layers:
                raise ValueError(
                    f'vision_feature_layers: {i} is outside a tower of {self.vision.layers} layers '
                    f'(0 to {self.vision.layers}, or -{self.vision.layers + 1} to -1)'
                )

    @property
    def taps(self) -> tuple[int, ...]:
        """The feature layers counted from 0, in the order in which they are concatenated."""
        return tuple(i % (self.vision.layers + 1) for i in self.feature_layers)

    @property
    def sizes(self) -> dict[str, int]:
        """The axes of the projector, from M to D and once more from D to E, as wide as D."""
        return dict(M=len(self.feature_layers) * self.vision.width, D=self.text.width, E=self.text.width)

    def with_projector(self, width: int, norm: bool) -> 'Config':
        """The config whose taps fit a projector of input `width`: the weights decide, not config.json.

        The published 7B says `vision_feature_layer: -2` and `projector_layernorm: false` and means
        neither; the width of its projector is that of five layers.
        """
        if width == self.sizes['M']:
            return dataclasses.replace(self, projector_norm=norm)
        for taps in (FIVE_TAPS, (-2,)):
            if width == len(taps) * self.vision.width:
                return dataclasses.replace(self, feature_layers=taps, projector_norm=norm)
        raise ValueError(
            f'vision_feature_layers: {list(self.feature_layers)} of width {self.vision.width} make '
            f'{self.sizes["M"]}, but the projector of this checkpoint takes {width}'
        )


VIP_LLAVA_7B = Config()
VIP_LLAVA_13B = Config(text=TextConfig(width=5120, layers=40, heads=40, kv_heads=40, mlp=13824))


def from_hugging_face(data: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Config:
    """The Config of a config.json of any era and, if there is one, its generation_config.json.

    Raises ValueError, naming the field, for what this implementation does not compute.
    """
    if 'model_type' not in data:
        raise ValueError("model_type: missing, expected 'vipllava' or 'llava': is this a model's config.json?")
    _require(data, 'model_type', ('vipllava', 'llava', 'llava_llama'))
    original = 'text_config' not in data  # the authors' own files are flat: a Llama config with extras
    text = data if original else data['text_config']
    vision = data.get('vision_config', {})
    _require(data, 'projector_hidden_act', ('gelu',))
    _require(data, 'mm_projector_type', ('mlp2x_gelu',))
    if not original:
        _require(text, 'model_type', ('llama',), 'text_config.')
    vip = data['model_type'] == 'vipllava' or data.get('mm_hidden_size', 0) > vision.get('hidden_size', 1024)
    ids = {**data, **{k: v for k, v in (generation or {}).items() if v is not None}}
    return Config(
        vision=_vision(vision),
        text=_text(text, tied=bool(data.get('tie_word_embeddings', False))),
        feature_layers=_feature_layers(data, FIVE_TAPS if vip else (-2,)),
        projector_norm=vip,
        projector_eps=data.get('projector_layernorm_eps', 1e-5),
        image_token=data.get('image_token_index', data.get('image_token_id', 32000)),
        bos=_first(ids, text, 'bos_token_id', 1),
        eos=_ids(_first(ids, text, 'eos_token_id', 2)),
        pad=_first(ids, text, 'pad_token_id', 0),
    )


def to_hugging_face(cfg: Config) -> dict[str, Any]:
    """The config.json that every transformers with this model reads."""
    vision, text = cfg.vision, cfg.text
    vip = cfg.projector_norm
    taps: list[int] | int = list(cfg.feature_layers) if vip or len(cfg.feature_layers) > 1 else cfg.feature_layers[0]
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


def _vision(data: Mapping[str, Any]) -> VisionConfig:
    where = 'vision_config.'
    _require(data, 'model_type', ('clip_vision_model',), where)
    _require(data, 'hidden_act', ('quick_gelu',), where)
    _require(data, 'num_channels', (3,), where)
    default = VisionConfig()
    return VisionConfig(
        image_size=data.get('image_size', default.image_size),
        patch_size=data.get('patch_size', default.patch_size),
        width=data.get('hidden_size', default.width),
        layers=data.get('num_hidden_layers', default.layers),
        heads=data.get('num_attention_heads', default.heads),
        mlp=data.get('intermediate_size', default.mlp),
        eps=data.get('layer_norm_eps', default.eps),
    )


def _text(data: Mapping[str, Any], tied: bool) -> TextConfig:
    where = 'text_config.'
    _require(data, 'hidden_act', ('silu',), where)
    for field in ('attention_bias', 'mlp_bias'):
        _require(data, field, (False,), where)
    rope = {**(data.get('rope_scaling') or {}), **(data.get('rope_parameters') or {})}
    _require(rope, 'rope_type', ('default',), where + 'rope_parameters.')
    _require(rope, 'type', ('default',), where + 'rope_scaling.')
    width, heads = data.get('hidden_size', 4096), data.get('num_attention_heads', 32)
    return TextConfig(
        vocab=data.get('vocab_size', 32000),
        width=width,
        layers=data.get('num_hidden_layers', 32),
        heads=heads,
        kv_heads=data.get('num_key_value_heads') or heads,
        head_size=data.get('head_dim') or width // heads,
        mlp=data.get('intermediate_size', 11008),
        eps=data.get('rms_norm_eps', 1e-6),
        rope_theta=float(rope.get('rope_theta', data.get('rope_theta', 10000.0))),
        context=data.get('max_position_embeddings', 2048),
        tied=tied or bool(data.get('tie_word_embeddings', False)),
    )


def _feature_layers(data: Mapping[str, Any], default: tuple[int, ...]) -> tuple[int, ...]:
    for name in ('vision_feature_layers', 'vision_feature_layer'):  # transformers lets the plural win
        if (value := data.get(name)) is not None:
            return _ids(value)
    return default


def _require(data: Mapping[str, Any], field: str, allowed: tuple[Any, ...], where: str = '') -> None:
    value = data.get(field)
    if value is not None and value not in allowed:
        names = ' or '.join(map(repr, allowed))
        raise ValueError(f'{where}{field}: {value!r} is not supported, only {names}')


def _first(ids: Mapping[str, Any], text: Mapping[str, Any], field: str, default: int) -> Any:
    return next((d[field] for d in (ids, text) if d.get(field) is not None), default)


def _ids(value: int | list[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _one_or_list(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)
