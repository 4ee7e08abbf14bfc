"""LoRA adapters on the decoder's weights: adding, dropout, and merging."""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vipllava_jax.arrays import flat, nested
from vipllava_jax.config import Config
from vipllava_jax.model.llama import reads, summed
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.model.vipllava import Params
from vipllava_jax.model.weights import LoRA
from vipllava_jax.training.recipes import TARGETS


def add(
    params: Params,
    cfg: Config,
    *,
    rank: int,
    alpha: float,
    key: Array,
    targets: Collection[str] = TARGETS,
    dropout: float = 0.0,
) -> Params:
    """Adds new adapters, which change nothing yet, to the named products of every decoder layer.

    `targets` are some of TARGETS, or peft's names of them ('q_proj'). a is initialized as in peft and b is
    zero, both float32; `dropping` applies dropout. Raises ValueError for an unknown target, and for weights
    that are fused or already have an adapter.
    """
    names = {name.removesuffix('_proj') for name in targets}
    if odd := [name for name in targets if name.removesuffix('_proj') not in TARGETS]:
        raise ValueError(f'targets: {", ".join(odd)} unknown, expected some of {", ".join(TARGETS)}')
    if not names or rank < 1 or not 0 <= dropout < 1:
        raise ValueError(
            f'an adapter needs a target, a rank of 1 or more and a dropout of at least 0 and below 1, not '
            f'{sorted(names)}, {rank} and {dropout}'
        )
    leaves = dict(flat(params))
    wanted = [f'llama/layers_{i}/{name}/w' for i in range(cfg.text.layers) for name in sorted(names)]
    if any(path not in leaves for path in wanted):
        raise ValueError(
            'the weights are fused, and an adapter fits only those that are not: load(fuse=False)'
        )
    if any(isinstance(leaves[path], LoRA) for path in wanted):
        raise ValueError('the weights have an adapter: merge it before another is added')
    for path, own in zip(wanted, jax.random.split(key, len(wanted)), strict=True):
        w, n = leaves[path], summed(path)
        into, out = w.shape[:n], w.shape[n:]
        bound = math.prod(into) ** -0.5
        a = jax.random.uniform(own, (*into, rank), jnp.float32, -bound, bound)
        leaves[path] = LoRA(w, a, jnp.zeros((rank, *out)), alpha / rank, dropout)
    return nested(leaves.items())


def dropping(params: Params, key: Array) -> Params:
    """The params for one training step, in which each adapter has dropout, at its rate, on its input.

    Adapters of a layer with the same input (q, k and v; gate and up) drop the same elements.
    """
    inputs = sorted({reads(path) for path, leaf in flat(params) if isinstance(leaf, LoRA)})
    keys = dict(zip(inputs, jax.random.split(key, len(inputs)), strict=True))
    return _each(params, lambda path, w: dataclasses.replace(w, key=keys[reads(path)]))


def merge(params: Params) -> Params:
    """Merges every adapter into its weight, in the weight's dtype.

    Raises ValueError for quantised weights: quantising again would not give the trained weights.
    """
    return _each(params, _merged)


def _merged(path: str, w: LoRA) -> Array:
    if isinstance(w.base, Quantized):
        raise ValueError(
            f'{path}: {w.base.dtype}, into which no adapter is merged: save the adapter, and load it with '
            'the weights as they were before they were quantised'
        )
    return _whole(dataclasses.replace(w, key=None))


@jax.jit
def _whole(w: LoRA) -> Array:
    return w.astype(w.dtype)


def _each(params: Params, change: Callable[[str, LoRA], Any]) -> Params:
    leaves = ((path, change(path, w) if isinstance(w, LoRA) else w) for path, w in flat(params))
    return nested(leaves)
