"""The model to be measured: a config, its weights, and random prompts."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, Sharding

from vipllava_jax.arrays import flat, nested, size
from vipllava_jax.config import VIP_LLAVA_7B, VIP_LLAVA_13B, Attention, Config, TextConfig, VisionConfig
from vipllava_jax.inputs.batch import Batch, bucket
from vipllava_jax.model.cost import Costs
from vipllava_jax.model.fused import FUSED, split_fused
from vipllava_jax.model.params import specs
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.model.vipllava import Params
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.weight_sharding import leaf_sharding

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
    """A model to be measured; its config has no end token, so that every answer has the requested length."""

    params: Params
    cfg: Config
    mesh: Mesh | None = None  # None: the first device

    @property
    def size(self) -> int:
        """The size of all weights in bytes."""
        return size(self.params)

    @property
    def weight(self) -> float:
        """The average bytes per element of the decoder's weights, without the embeddings."""
        decoder = {**self.params['llama'], 'embed': {}}
        return size(decoder) / sum(w.size for _, w in flat(decoder))

    @property
    def quantized(self) -> str | None:
        """The quantized dtype of the decoder's large weights; None if they are not quantized."""
        w = self.params['llama']['layers_0']['o']['w']
        return w.dtype.name if isinstance(w, Quantized) else None

    @property
    def fused(self) -> bool:
        """Whether weights that have the same input are fused."""
        return any(fused.name in self.params['llama']['layers_0'] for fused in FUSED)

    @property
    def costs(self) -> Costs:
        return Costs(self.cfg, self.weight, self.dtype.itemsize, self.dtype.itemsize)

    @property
    def dtype(self) -> Any:
        """The dtype of activations, and so of the cache."""
        return jnp.dtype(self.params['llama']['norm']['w'].dtype)

    def leaves(self) -> Iterator[tuple[str, Array]]:
        """Every weight with its path in a checkpoint: fused weights are split."""
        for path, w in flat(self.params):
            yield from split_fused(path, w)

    def prompt(self, rows: int, tokens: int, images: int = 1) -> Batch:
        """Rows of `tokens` random tokens each, with `images` random images after the first token."""
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

    def questions(self, rows: int, tokens: int, own: int) -> tuple[Batch, Batch]:
        """Prompts with one image that differ in the last `own` tokens, and a row of what they begin with."""
        different = self.prompt(rows, tokens)
        words, P = different.tokens.copy(), tokens - own
        words[:, :P] = words[0, :P]
        same = different._replace(tokens=words, images=different.images[[0] * rows])
        first = same.tokens[:1].copy()
        first[:, P:] = self.cfg.pad
        return same, Batch(first, np.array([P], np.int32), same.images[:1], same.image_counts[:1])


def silent(cfg: Config, attention: Attention | None = None) -> Config:
    """The config without an end token, and with the given attention."""
    return dataclasses.replace(cfg, eos=(), attention=attention)


def random_params(cfg: Config, dtype: Any, quantize: str | None = None, mesh: Mesh | None = None) -> Params:
    """Random params without zeros: products keep the variance near 1, gains are near 1, biases are small.

    On a mesh, each device creates only its part of a weight.
    """
    return nested(quantize_leaves(random_leaves(cfg, dtype, mesh), quantize))


def random_leaves(cfg: Config, dtype: Any, mesh: Mesh | None = None) -> Iterator[tuple[str, Array]]:
    """The leaves of `random_params`, one at a time, before quantizing."""
    # rbg is four times faster than the default for billions of numbers, but creates them whole on a device
    key = jax.random.key(0, impl='threefry2x32' if mesh else 'rbg')
    for i, (path, spec) in enumerate(specs(cfg).items()):
        mean, std = 0.0, 0.02
        if spec.contracted:
            std = spec.fan_in**-0.5
        elif not spec.decays and path.endswith('/w'):  # the gain of a norm
            mean = 1.0
        shape = jax.ShapeDtypeStruct(spec.shape, jnp.dtype(dtype))
        place = leaf_sharding(path, shape, mesh) if mesh else None
        yield path, _normal(spec.shape, jnp.dtype(dtype), place)(jax.random.fold_in(key, i), mean, std)


@functools.cache
def _normal(shape: tuple[int, ...], dtype: Any, place: Sharding | None) -> Callable[..., Array]:
    """A compiled function of a key, a mean and a standard deviation."""

    def normal(key: Array, mean: float, std: float) -> Array:
        return (mean + std * jax.random.normal(key, shape)).astype(dtype)

    return jax.jit(normal, out_shardings=place)
