"""What is measured: a config, its weights, and the prompts they are given."""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vipllava_jax.benchmark.cost import Costs
from vipllava_jax.config import VIP_LLAVA_7B, VIP_LLAVA_13B, Attention, Config, TextConfig, VisionConfig
from vipllava_jax.inputs.processor import Batch, bucket
from vipllava_jax.model.vipllava import Params, abstract

PRESETS = {
    '7b': VIP_LLAVA_7B,
    '13b': VIP_LLAVA_13B,
    'tiny': Config(
        vision=VisionConfig(image_size=112, width=64, layers=12, heads=4, mlp=256),
        text=TextConfig(vocab=1024, width=128, layers=4, heads=4, kv_heads=4, head_size=32, mlp=352),
        image_token=1000,
        pad=1001,
    ),
}


class Subject(NamedTuple):
    """A model to be measured; its config has no end token, so that every answer has the length asked for."""

    params: Params
    cfg: Config

    @property
    def size(self) -> int:
        """The bytes of all weights."""
        return sum(w.nbytes for w in jax.tree.leaves(self.params))

    @property
    def weight(self) -> float:
        """The bytes of a number of the decoder's weights, on average."""
        leaves = jax.tree.leaves({**self.params['llama'], 'embed': {}})
        return sum(w.nbytes for w in leaves) / sum(w.size for w in leaves)

    @property
    def costs(self) -> Costs:
        return Costs(self.cfg, self.weight, self.dtype.itemsize)

    @property
    def dtype(self) -> Any:
        """The type of what passes between the layers, and so that of the cache."""
        return jnp.dtype(self.params['llama']['norm']['w'].dtype)

    def prompt(self, rows: int, tokens: int, images: int = 1) -> Batch:
        """Rows of random words, as many tokens each, with random pictures after the first."""
        cfg, rng = self.cfg, np.random.default_rng(0)
        pictures = images * cfg.vision.patches
        if tokens < pictures + 2:
            raise ValueError(
                f'a prompt of {tokens} tokens has no room for {images} × {cfg.vision.patches} of a picture: '
                'ask for a longer --context'
            )
        words = rng.integers(3, min(cfg.text.vocab, cfg.image_token), (rows, bucket(tokens)), np.int32)
        words[:, 0] = cfg.bos
        words[:, 1 : 1 + pictures] = cfg.image_token
        words[:, tokens:] = cfg.pad
        side = cfg.vision.image_size
        pixels = rng.normal(size=(rows, images, side, side, 3)).astype(np.float32)
        return Batch(words, np.full(rows, tokens, np.int32), pixels, np.full(rows, images, np.int32))


def silent(cfg: Config, attention: Attention | None = None) -> Config:
    """The config without an end token."""
    return dataclasses.replace(cfg, eos=(), attention=attention)


def random_params(cfg: Config, dtype: Any) -> Params:
    """Params of which none is zero: products that keep a variance of about 1, gains near 1, small shifts."""
    leaves, tree = jax.tree.flatten_with_path(abstract(cfg, dtype))
    drawn = [
        _draw(jax.random.fold_in(jax.random.key(0), i), leaf.shape, dtype, path[-1].key == 'w')
        for i, (path, leaf) in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, drawn)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key: Array, shape: tuple[int, ...], dtype: Any, gain: bool) -> Array:
    if len(shape) == 1:
        return (gain + 0.02 * jax.random.normal(key, shape)).astype(dtype)
    return (jax.random.normal(key, shape) * min(math.prod(shape[:-1]), 4096) ** -0.5).astype(dtype)
