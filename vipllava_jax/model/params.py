"""The params of a model: random ones, their shapes, and the axes of every weight."""

import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.typing import DTypeLike

from vipllava_jax.config import Config, TextConfig, VisionConfig
from vipllava_jax.model.fused import FUSED
from vipllava_jax.model.vipllava import Params, VipLlava
from vipllava_jax.model.weights import WeightAxes, WeightSpec


def init(key: Array, cfg: Config, dtype: DTypeLike = jnp.float32) -> Params:
    """Random params with the shapes of the config.

    Weights of products are normal with variance 1 / fan-in, the embedding table with standard deviation 0.02.
    Gains are 1, shifts and biases 0.
    """
    return nn.meta.unbox(_init_with_axes(key, cfg, dtype))


def _init_with_axes(key: Array, cfg: Config, dtype: DTypeLike) -> Any:
    """The params of `init`, each in a box with its axes, `WithAxes`."""
    images = jnp.zeros((1, 1, cfg.vision.image_size, cfg.vision.image_size, 3), dtype)
    embeddings = jnp.zeros((1, 1, cfg.text.width), dtype)
    tokens = jnp.zeros((1, 1), int)
    return VipLlava(cfg).init(key, tokens, images, embeddings, method='forward')['params']


def abstract(cfg: Config, dtype: DTypeLike = jnp.float32) -> Params:
    """The params of the config as jax.ShapeDtypeStruct leaves, without allocating arrays."""
    leaves = {path: jax.ShapeDtypeStruct(spec.shape, dtype) for path, spec in specs(cfg).items()}
    return unflatten_dict(leaves, sep='/')


def specs(cfg: Config) -> dict[str, WeightSpec]:
    """The letters, shape and other properties of every weight of the config, by its path, in sorted order.

    Fused weights are not listed: `weight_axes` has their letters.
    """
    sizes = {'clip': cfg.vision.sizes, 'projector': cfg.sizes, 'llama': cfg.text.sizes}
    layers = {'clip': cfg.vision.layers, 'llama': cfg.text.layers}
    found = {}
    for path, axes in _axes_by_path(cfg.projector_norm, cfg.text.tied).items():
        part = path.split('/')[0]
        spec = WeightSpec(**vars(axes), shape=tuple(sizes[part][a] for a in axes.letters))
        for i in range(layers[part]) if 'layers_0' in path else (0,):
            found[path.replace('layers_0', f'layers_{i}')] = spec
    return dict(sorted(found.items(), key=lambda item: item[0].split('/')))


def weight_axes(path: str) -> WeightAxes:
    """The axes of a weight, fused or not, by its path in params of any config.

    For 'llama/layers_7/q/w' the letters are 'DNH', and the product contracts 'D'. Raises ValueError for a
    path at which no config has a weight.
    """
    try:
        return _axes_of_any_weight()[re.sub(r'/layers_\d+/', '/layers_0/', path)]
    except KeyError:
        raise ValueError(f'{path}: no model has a weight of this name') from None


@functools.cache
def _axes_of_any_weight() -> dict[str, WeightAxes]:
    """The axes of the weights of all configs, by the paths of `_axes_by_path`; fused weights included."""
    fused = {f'llama/layers_0/{weight.name}/w': weight.axes for weight in FUSED}
    return _axes_by_path(True, False) | _with_quantizable(fused)


@functools.cache
def _axes_by_path(projector_norm: bool, tied: bool) -> dict[str, WeightAxes]:
    """The axes of the weights of a model whose only layers are layers_0: sizes do not change the letters."""
    cfg = Config(
        VisionConfig(image_size=1, patch_size=1, width=1, layers=1, heads=1, mlp=1),
        TextConfig(vocab=1, width=1, layers=1, heads=1, kv_heads=1, head_size=2, mlp=1, tied=tied),
        feature_layers=(0,),
        projector_norm=projector_norm,
    )
    boxes = jax.eval_shape(lambda: _init_with_axes(jax.random.key(0), cfg, jnp.float32))
    return _with_quantizable({path: box.axes for path, box in flatten_dict(boxes, sep='/').items()})


def _with_quantizable(axes: dict[str, WeightAxes]) -> dict[str, WeightAxes]:
    """Axes by path -> the same with `quantizable` set for the weights of the decoder's products.

    They are the largest weights, and every step of decoding reads all of them.
    """
    return {
        path: dataclasses.replace(weight, quantizable=path.startswith('llama/') and bool(weight.contracted))
        for path, weight in axes.items()
    }
