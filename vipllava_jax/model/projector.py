"""The projector, and the merging of its features with the embeddings of the tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from vipllava_jax.config import Config
from vipllava_jax.model.layers import LayerNorm, Linear


class Projector(nn.Module):
    """Concatenated hidden states BPM -> BPD in the width of the decoder."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        s = self.cfg.sizes
        if self.cfg.projector_norm:
            x = LayerNorm('M', s, self.cfg.projector_eps, name='norm')(x)
        x = Linear('BPM,MD->BPD', s, bias=True, name='linear_1')(x)
        x = jax.nn.gelu(x, approximate=False)
        return Linear('BPD,DE->BPE', s, bias=True, name='linear_2')(x)


def merge(x: Array, features: Array, placeholder: Array) -> Array:
    """Embeddings x BTD -> x with the features BIPD of each row, in order, where placeholder BT is True."""
    B, _, _, D = features.shape
    nth = jnp.maximum(jnp.cumsum(placeholder, axis=1) - 1, 0)
    inserted = jnp.take_along_axis(features.reshape(B, -1, D), nth[..., None], axis=1, mode='clip')
    return jnp.where(placeholder[..., None], inserted.astype(x.dtype), x)


def place_features(x: Array, features: Array, sources: Array) -> Array:
    """Embeddings x BTD -> x with feature `sources` BT, counted over all images FPD, where that is not -1."""
    inserted = features.reshape(-1, features.shape[-1])[jnp.maximum(sources, 0)]
    return jnp.where(sources[..., None] >= 0, inserted.astype(x.dtype), x)
