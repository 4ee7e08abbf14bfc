"""The vision tower: CLIP's transformer over patches, computed up to the deepest layer that is tapped."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from vipllava_jax.config import Config
from vipllava_jax.model.attention import attend
from vipllava_jax.model.layers import LayerNorm, Linear, param
from vipllava_jax.model.weights import WeightAxes


class Layer(nn.Module):
    """BPD -> BPD: attention without a mask, then an MLP, each after a LayerNorm and with a residual."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        s, eps = self.cfg.vision.sizes, self.cfg.vision.eps
        y = LayerNorm('D', s, eps, name='norm1')(x)
        q = Linear('BPD,DNH->BPNH', s, bias=True, name='q')(y)
        k = Linear('BPD,DNH->BPNH', s, bias=True, name='k')(y)
        v = Linear('BPD,DNH->BPNH', s, bias=True, name='v')(y)
        y = attend(q, k, v, causal=False, implementation=self.cfg.attention)
        x += Linear('BPNH,NHD->BPD', s, bias=True, name='o')(y)
        y = LayerNorm('D', s, eps, name='norm2')(x)
        y = quick_gelu(Linear('BPD,DF->BPF', s, bias=True, name='up')(y))
        return x + Linear('BPF,FD->BPD', s, bias=True, name='down')(y)


@partial(jax.jit, static_argnames='cfg', inline=True)
def run_layer(params: Any, x: Array, *, cfg: Config) -> Array:
    """A `Layer` as a function of its params, which is traced once for all layers of a program."""
    y: Any = Layer(cfg, parent=None).apply({'params': params}, x)
    return y


class Clip(nn.Module):
    """Images Bhw3 -> the tapped hidden states BPD, class token first, in the order of `cfg.taps`."""

    cfg: Config

    @nn.compact
    def __call__(self, images: Array) -> list[Array]:
        vision = self.cfg.vision
        s = vision.sizes
        normal = nn.initializers.normal(s['D'] ** -0.5)
        class_token = param(self, 'class_token', normal, WeightAxes('D'), s, images.dtype)
        images = images.astype(class_token.dtype)  # or float32 pixels would make the tower float32
        patches = Linear('BPC,CD->BPD', s, name='patch')(patchify(images, vision.patch_size))
        first = jnp.broadcast_to(class_token, (len(images), 1, s['D']))
        x = jnp.concatenate([first, patches], axis=1)
        x += param(self, 'positions', normal, WeightAxes('PD'), s, images.dtype)
        states = [LayerNorm('D', s, vision.eps, name='pre_norm')(x)]
        if self.is_initializing():  # also the layers after the deepest tap, which checkpoints hold
            for i in range(vision.layers):
                states.append(Layer(self.cfg, name=f'layers_{i}')(states[-1]))
            LayerNorm('D', s, vision.eps, name='post_norm')(states[-1])
        else:
            for i in range(max(self.cfg.taps)):
                states.append(run_layer(self.variables['params'][f'layers_{i}'], states[-1], cfg=self.cfg))
        return [states[i] for i in self.cfg.taps]


def patchify(images: Array, size: int) -> Array:
    """Images Bhw3 -> patches BPC in row-major order, the pixels of each patch flattened as (y, x, color)."""
    B, h, w, _ = images.shape
    x = images.reshape(B, h // size, size, w // size, size, 3).swapaxes(2, 3)
    return x.reshape(B, -1, 3 * size * size)


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), the approximation of GELU with which OpenAI trained CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)
