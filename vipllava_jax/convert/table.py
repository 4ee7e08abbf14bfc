"""The table of tensors: each one's name in PyTorch checkpoints, its path in our params, and the file's axes.

Axes such as '(NH)D' are named in the letters of `vipllava_jax.config`, with merged axes in parentheses; those
of our params are the letters of `specs`. The names are those of the Hub's checkpoints; names from other
checkpoints are translated to them first (`hub_name`).
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vipllava_jax.config import Config
from vipllava_jax.model.params import specs

CLIP = (
    ('embeddings.class_embedding', 'class_token', 'D'),
    ('embeddings.position_embedding.weight', 'positions', 'PD'),
    ('embeddings.patch_embedding.weight', 'patch/w', 'Dchw'),
    ('pre_layrnorm.weight', 'pre_norm/w', 'D'),
    ('pre_layrnorm.bias', 'pre_norm/b', 'D'),
    ('encoder.layers.{}.layer_norm1.weight', 'layers_{}/norm1/w', 'D'),
    ('encoder.layers.{}.layer_norm1.bias', 'layers_{}/norm1/b', 'D'),
    ('encoder.layers.{}.self_attn.q_proj.weight', 'layers_{}/q/w', '(NH)D'),
    ('encoder.layers.{}.self_attn.q_proj.bias', 'layers_{}/q/b', '(NH)'),
    ('encoder.layers.{}.self_attn.k_proj.weight', 'layers_{}/k/w', '(NH)D'),
    ('encoder.layers.{}.self_attn.k_proj.bias', 'layers_{}/k/b', '(NH)'),
    ('encoder.layers.{}.self_attn.v_proj.weight', 'layers_{}/v/w', '(NH)D'),
    ('encoder.layers.{}.self_attn.v_proj.bias', 'layers_{}/v/b', '(NH)'),
    ('encoder.layers.{}.self_attn.out_proj.weight', 'layers_{}/o/w', 'D(NH)'),
    ('encoder.layers.{}.self_attn.out_proj.bias', 'layers_{}/o/b', 'D'),
    ('encoder.layers.{}.layer_norm2.weight', 'layers_{}/norm2/w', 'D'),
    ('encoder.layers.{}.layer_norm2.bias', 'layers_{}/norm2/b', 'D'),
    ('encoder.layers.{}.mlp.fc1.weight', 'layers_{}/up/w', 'FD'),
    ('encoder.layers.{}.mlp.fc1.bias', 'layers_{}/up/b', 'F'),
    ('encoder.layers.{}.mlp.fc2.weight', 'layers_{}/down/w', 'DF'),
    ('encoder.layers.{}.mlp.fc2.bias', 'layers_{}/down/b', 'D'),
    ('post_layernorm.weight', 'post_norm/w', 'D'),
    ('post_layernorm.bias', 'post_norm/b', 'D'),
)
PROJECTOR = (
    ('projector_layernorm.weight', 'norm/w', 'M'),
    ('projector_layernorm.bias', 'norm/b', 'M'),
    ('linear_1.weight', 'linear_1/w', 'DM'),
    ('linear_1.bias', 'linear_1/b', 'D'),
    ('linear_2.weight', 'linear_2/w', 'ED'),
    ('linear_2.bias', 'linear_2/b', 'E'),
)
LLAMA = (
    ('model.embed_tokens.weight', 'embed/w', 'VD'),
    ('model.layers.{}.input_layernorm.weight', 'layers_{}/attn_norm/w', 'D'),
    ('model.layers.{}.self_attn.q_proj.weight', 'layers_{}/q/w', '(NH)D'),
    ('model.layers.{}.self_attn.k_proj.weight', 'layers_{}/k/w', '(KH)D'),
    ('model.layers.{}.self_attn.v_proj.weight', 'layers_{}/v/w', '(KH)D'),
    ('model.layers.{}.self_attn.o_proj.weight', 'layers_{}/o/w', 'D(NH)'),
    ('model.layers.{}.post_attention_layernorm.weight', 'layers_{}/mlp_norm/w', 'D'),
    ('model.layers.{}.mlp.gate_proj.weight', 'layers_{}/gate/w', 'FD'),
    ('model.layers.{}.mlp.up_proj.weight', 'layers_{}/up/w', 'FD'),
    ('model.layers.{}.mlp.down_proj.weight', 'layers_{}/down/w', 'DF'),
    ('model.norm.weight', 'norm/w', 'D'),
    ('lm_head.weight', 'head/w', 'VD'),
)

MERGED_C = '(hwc)'  # the axis C, in the order of `patchify`: row and column of a pixel, and its color

VISION, BRIDGE, TEXT = 'vision_tower.vision_model.', 'multi_modal_projector.', 'language_model.'
LAYERS, VISION_LAYERS = TEXT + 'model.layers.', VISION + 'encoder.layers.'
EMBED, HEAD = TEXT + 'model.embed_tokens.weight', TEXT + 'lm_head.weight'

# Applied in this order, each where it matches the beginning of a name.
RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # the authors' code: a tower inside a tower, and the projector's layers by number
        (r'model\.vision_tower\.vision_tower\.', 'vision_tower.'),
        (r'model\.mm_projector\.clip_layernorm\.', BRIDGE + 'projector_layernorm.'),
        (r'model\.mm_projector\.(final_linear\.)?0\.', BRIDGE + 'linear_1.'),
        (r'model\.mm_projector\.(final_linear\.)?2\.', BRIDGE + 'linear_2.'),
        # a model in memory: everything but the head below one more `model`
        (r'model\.(vision_tower|multi_modal_projector|language_model)\.', r'\1.'),
        # the tower as transformers 5 names it, and a standalone CLIP
        (r'vision_tower\.(embeddings|pre_layrnorm|encoder|post_layernorm)\b', VISION + r'\1'),
        (r'vision_model\.', VISION),
        # the text, with one `model` too few or too many, or a standalone Llama
        (r'language_model\.(embed_tokens|layers|norm)\.', TEXT + r'model.\1.'),
        (r'language_model\.model\.model\.', TEXT + 'model.'),
        (r'(model|lm_head)\.', TEXT + r'\1.'),
    )
)
UNUSED = re.compile(
    r'(.*\.)?(rotary_emb\.(original_)?inv_freq|embeddings\.position_ids'  # computed, not learned
    r'|text_model\..*|(text|visual)_projection\.weight|logit_scale)'  # the text model and heads of CLIP
)

Sizes = tuple[tuple[str, int], ...]  # (letter, size), …: a dict that can be hashed


class Leaf(NamedTuple):
    """A tensor's name and axes in a file and in our params."""

    path: str  # ours, 'llama/layers_0/q/w'
    name: str  # the Hub's
    layout: str  # the file's axes and ours, '(NH)D->DNH'
    sizes: Sizes  # of the letters of the layout
    contracted: int = 0  # how many of our leading axes its product contracts

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The file's shape and ours."""
        sizes = dict(self.sizes)
        theirs, ours = (
            tuple(math.prod(sizes[a] for a in axis) for axis in split_axes(side))
            for side in self.layout.split('->')
        )
        return theirs, ours

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shapes[1])

    @property
    def is_linear(self) -> bool:
        """Whether PyTorch's tensor is the weight of a linear layer, [out, in]."""
        return self.contracted > 0 and len(self.shapes[0]) == 2


def leaves(cfg: Config) -> Iterator[Leaf]:
    """Every leaf of the params of a model, in the order of the table."""
    patch, weights = cfg.vision.patch_size, specs(cfg)
    for part, prefix, rows, layers in (
        ('clip', VISION, CLIP, cfg.vision.layers),
        ('projector', BRIDGE, PROJECTOR, 0),
        ('llama', TEXT, LLAMA, cfg.text.layers),
    ):
        for name, path, axes_in_file in rows:
            if (first := f'{part}/{path.format(0)}') not in weights:  # no norm in the projector, a tied head
                continue
            spec = weights[first]
            sizes = {**dict(zip(spec.letters, spec.shape, strict=True)), 'c': 3, 'h': patch, 'w': patch}
            layout = f'{axes_in_file}->{spec.letters.replace("C", MERGED_C)}'
            used = tuple((letter, size) for letter, size in sizes.items() if letter in layout)
            for i in range(layers) if '{}' in name else (0,):
                yield Leaf(
                    f'{part}/{path.format(i)}', prefix + name.format(i), layout, used, len(spec.contracted)
                )


def rearrange_axes(x: Any, layout: str, sizes: Mapping[str, int]) -> Any:
    """Rearranges an array of numpy or jax from the layout left of the arrow to that on the right."""
    source, target = map(split_axes, layout.split('->'))
    letters = ''.join(source)
    x = x.reshape([sizes[a] for a in letters]).transpose([letters.index(a) for a in ''.join(target)])
    return x.reshape([math.prod(sizes[a] for a in axis) for axis in target])


def reverse_layout(layout: str) -> str:
    """'(NH)D->DNH' -> 'DNH->(NH)D'."""
    return '->'.join(reversed(layout.split('->')))


def hub_name(name: str) -> str:
    """A tensor's name in a checkpoint of any known layout -> its name on the Hub."""
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name, count=1) if pattern.match(name) else name
    return name


def split_axes(side: str) -> list[str]:
    """'(NH)D' -> ['NH', 'D']."""
    return [fused or single for fused, single in re.findall(r'\((\w+)\)|(\w)', side)]
