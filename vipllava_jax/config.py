"""The alphabet, and what a model is in its letters.

One letter names an axis everywhere: in the equations, the shapes of weights and the layouts of files.

    B batch            T query token     S key slot          L layers
    D width            N query heads     K key/value heads   G = N/K query heads of a key/value head
    H head size        F mlp             V vocabulary        M the tapped widths, concatenated
    P patches, class token first         C channels of a patch, (y, x, colour)      I images of a row
    E width D once more, on the other side of a product     X products fused into one     R rank of an adapter
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

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


def check_feature_layers(taps: tuple[int, ...], layers: int, name: str = 'vision_feature_layers') -> None:
    """ValueError, by the name of the field, for feature layers that a tower does not have."""
    if not taps:
        raise ValueError(f'{name}: empty, but at least one layer must be tapped')
    for i in taps:
        if not -layers - 1 <= i <= layers:
            raise ValueError(
                f'{name}: {i} is outside a tower of {layers} layers (0 to {layers}, or -{layers + 1} to -1)'
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
        if self.attention not in (None, 'xla', 'cudnn'):
            raise ValueError(f"attention is {self.attention!r}, but must be 'xla', 'cudnn' or None")
        check_feature_layers(self.feature_layers, self.vision.layers)

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
