"""The tensors of the tiny model, with the names that they have in checkpoints of each layout."""

import dataclasses
from pathlib import Path

from tests.conftest import TINY
from vipllava_jax.config import Config
from vipllava_jax.convert.table import Leaf, leaves
from vipllava_jax.convert.tensors import Tensor, dense

LLAVA = dataclasses.replace(TINY, feature_layers=(-2,), projector_norm=False)
TIED = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, tied=True))
PREFIXES = {  # of the vision tower, the projector, the text and its head
    '(a) the Hub': (
        'vision_tower.vision_model.',
        'multi_modal_projector.',
        'language_model.model.',
        'language_model.',
    ),
    '(b) transformers 5': (
        'vision_tower.',
        'multi_modal_projector.',
        'language_model.model.',
        'language_model.',
    ),
    "(b') in memory, 5": ('model.vision_tower.', 'model.multi_modal_projector.', 'model.language_model.', ''),
    "(b'') in memory, 4": (
        *('model.vision_tower.vision_model.', 'model.multi_modal_projector.'),
        *('model.language_model.', ''),
    ),
    '(c) the authors': ('model.vision_tower.vision_tower.vision_model.', 'model.mm_projector.', 'model.', ''),
    'doubled, in front': (
        'vision_tower.',
        'multi_modal_projector.',
        'model.language_model.model.',
        'language_model.',
    ),
    'doubled, behind': (
        'vision_tower.',
        'multi_modal_projector.',
        'language_model.model.model.',
        'language_model.',
    ),
}
VIP = {'projector_layernorm': 'clip_layernorm', 'linear_1': 'final_linear.0', 'linear_2': 'final_linear.2'}
FIRST = {'linear_1': '0', 'linear_2': '2'}


def renamed(leaf: Leaf, layout: str, norm: bool = True) -> str:
    """The name of a tensor in a layout, derived from its name on the Hub."""
    vision, projector, text, head = PREFIXES[layout]
    name = leaf.name.removeprefix('language_model.')
    if leaf.path.startswith('clip/'):
        return vision + name.removeprefix('vision_tower.vision_model.')
    if leaf.path.startswith('projector/'):
        part, parameter = name.removeprefix('multi_modal_projector.').split('.')
        if layout.startswith('(c)'):
            part = (VIP if norm else FIRST)[part]
        return f'{projector}{part}.{parameter}'
    return text + name.removeprefix('model.') if name.startswith('model.') else head + name


def stored(cfg: Config, layout: str = '(a) the Hub', **changed: dict) -> dict[str, Tensor]:
    """Descriptions of a model's tensors, consecutive in a file that is never read."""
    tensors, offset = {}, 0
    for leaf in leaves(cfg):
        shape = leaf.shapes[0]
        tensor = Tensor(Path('w'), offset, 'float16', shape, dense(shape))
        tensors[renamed(leaf, layout, cfg.projector_norm)] = dataclasses.replace(
            tensor, **changed.get(leaf.path, {})
        )
        offset += 2 * leaf.size
    return tensors
