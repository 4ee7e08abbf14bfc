"""The configuration of a model, and the letters that name its axes.

A letter means the same axis in einsum equations, shapes of weights and layouts of files.

    B batch            T query token     S key slot          L layers
    D width            N query heads     K key/value heads   G = N/K query heads per key/value head
    H head size        F mlp             V vocabulary        M concatenated widths of the tapped layers
    P patches, class token first         C channels of a patch, (y, x, color)       I images per row
    E width, the output axis of a weight DE     X weights fused into one            R rank of an adapter
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

FIVE_TAPS = (-2, -5, -8, -11, 6)  # the feature layers of ViP-LLaVA, in the order of concatenation
Attention = Literal['xla', 'cudnn']


@dataclass(frozen=True)
class VisionConfig:
    """The configuration of a CLIP vision tower; the defaults are those of ViT-L/14 at 336 pixels."""

    image_size: int = 336
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp: int = 4096
    eps: float = 1e-5

    @property
    def patches(self) -> int:
        """The number of tokens per image, without the class token."""
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
    """The configuration of a Llama decoder; the defaults are those of ViP-LLaVA 7B."""

    vocab: int = 32064
    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_size: int = 128
    mlp: int = 11008
    eps: float = 1e-5
    rope_theta: float = 10000.0
    context: int = 4096  # maximum number of tokens of prompt and answer together
    tied: bool = False  # whether the embedding table is also the head

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


def check_feature_layers(taps: tuple[int, ...], layers: int, name: str = 'vision_feature_layers') -> None:
    """Raises ValueError, naming the field, if a vision tower with `layers` layers lacks one of the taps."""
    if not taps:
        raise ValueError(f'{name}: empty, but at least one layer must be tapped')
    for i in taps:
        if not -layers - 1 <= i <= layers:
            raise ValueError(
                f'{name}: {i} is outside a tower of {layers} layers (0 to {layers}, or -{layers + 1} to -1)'
            )


@dataclass(frozen=True)
class Config:
    """The configuration of a model: vision tower, decoder, feature layers, projector, special token ids."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    feature_layers: tuple[int, ...] = FIVE_TAPS  # 0: the embeddings; i: the output of layer i; -1: the last
    projector_norm: bool = True  # False for LLaVA-1.5
    projector_eps: float = 1e-5
    image_token: int = 32000
    bos: int = 1
    eos: tuple[int, ...] = (2,)
    pad: int = 32001
    attention: Attention | None = None  # None: cuDNN where it is supported, XLA elsewhere

    def __post_init__(self) -> None:
        if self.attention not in (None, 'xla', 'cudnn'):
            raise ValueError(f"attention is {self.attention!r}, but must be 'xla', 'cudnn' or None")
        check_feature_layers(self.feature_layers, self.vision.layers)

    @property
    def taps(self) -> tuple[int, ...]:
        """The feature layers counted from 0, in the order in which they are concatenated."""
        return tuple(i % (self.vision.layers + 1) for i in self.feature_layers)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the projector's axes: its weights are MD and DE, and E is equal to D."""
        return dict(M=len(self.feature_layers) * self.vision.width, D=self.text.width, E=self.text.width)

    def with_projector(self, width: int, norm: bool) -> 'Config':
        """The config that matches a projector with this input width, and with or without a norm.

        The weights take precedence over config.json: that of the published 7B has `vision_feature_layer: -2`
        and `projector_layernorm: false`, but its projector has a norm and the input width of five layers.
        Raises ValueError if the width matches neither the config, nor five layers, nor one.
        """
        if width == self.sizes['M']:
            return dataclasses.replace(self, projector_norm=norm)
        for taps in (FIVE_TAPS, (-2,)):
            if width == len(taps) * self.vision.width:
                return dataclasses.replace(self, feature_layers=taps, projector_norm=norm)
        raise ValueError(
            f'vision_feature_layers: {list(self.feature_layers)} of width {self.vision.width} have a '
            f'total width of {self.sizes["M"]}, but the projector of this checkpoint takes {width}'
        )


VIP_LLAVA_7B = Config()
VIP_LLAVA_13B = Config(text=TextConfig(width=5120, layers=40, heads=40, kv_heads=40, mlp=13824))
