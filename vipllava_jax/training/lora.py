"""LoRA adapters on the decoder's weights: adding, dropout, and merging."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, Sharding

from vipllava_jax.arrays import flat, nested
from vipllava_jax.config import Config
from vipllava_jax.model.fused import shared_input
from vipllava_jax.model.params import specs
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.model.vipllava import Params
from vipllava_jax.model.weights import LoRA, WeightSpec
from vipllava_jax.sharding import mesh_of, sharding
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
    """Adds new adapters, which change no result yet, to the named products of every decoder layer.

    `targets` are some of TARGETS, or peft's names of them ('q_proj'). The matrix a is initialized as in peft
    and b is zero, both in float32; `with_dropout` applies dropout. Raises ValueError for an unknown target,
    and for weights that are fused or already have an adapter.
    """
    names = {name.removesuffix('_proj') for name in targets}
    if unknown := [name for name in targets if name.removesuffix('_proj') not in TARGETS]:
        raise ValueError(f'unknown targets: {", ".join(unknown)}; expected some of {", ".join(TARGETS)}')
    if not names or rank < 1 or not 0 <= dropout < 1:
        raise ValueError(
            f'an adapter needs a target, a rank of 1 or more and a dropout of at least 0 and below 1, not '
            f'{sorted(names)}, {rank} and {dropout}'
        )
    leaves = dict(flat(params))
    paths = [f'llama/layers_{i}/{name}/w' for i in range(cfg.text.layers) for name in sorted(names)]
    if any(path not in leaves for path in paths):
        raise ValueError(
            'the weights are fused, but an adapter needs separate weights: load them with fuse=False'
        )
    if any(isinstance(leaves[path], LoRA) for path in paths):
        raise ValueError('the weights already have an adapter: merge it before you add another')
    axes = specs(cfg)
    for path, path_key in zip(paths, jax.random.split(key, len(paths)), strict=True):
        pair = _new_pair(path_key, axes[path], rank, mesh_of(leaves[path]))
        leaves[path] = LoRA(leaves[path], *pair, alpha / rank, dropout)
    return nested(leaves.items())


def _new_pair(key: Array, weight: WeightSpec, rank: int, mesh: Mesh | None) -> tuple[Array, Array]:
    """The matrices a and b of a new adapter, on the mesh of its weight."""
    n = len(weight.contracted)
    shapes = (*weight.shape[:n], rank), (rank, *weight.shape[n:])
    at = None
    if mesh is not None:
        letters = weight.contracted + 'R', 'R' + weight.output
        at = (*(sharding(*each, mesh) for each in zip(letters, shapes, strict=True)),)
    return _random_pair(key, weight.fan_in**-0.5, *shapes, at)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _random_pair(
    key: Array, bound: float, a: tuple[int, ...], b: tuple[int, ...], at: tuple[Sharding, ...] | None
) -> tuple[Array, Array]:
    pair = jax.random.uniform(key, a, jnp.float32, -bound, bound), jnp.zeros(b)
    return pair if at is None else jax.lax.with_sharding_constraint(pair, at)


def with_dropout(params: Params, key: Array) -> Params:
    """The params for one training step, in which dropout applies to each adapter's input, at its rate.

    Adapters with the same input (q, k and v of a layer; gate and up) drop the same elements.
    """
    inputs = sorted({shared_input(path) for path, leaf in flat(params) if isinstance(leaf, LoRA)})
    keys = dict(zip(inputs, jax.random.split(key, len(inputs)), strict=True))
    return _map_adapters(params, lambda path, w: dataclasses.replace(w, key=keys[shared_input(path)]))


def merge(params: Params) -> Params:
    """Merges every adapter into its weight, in the weight's dtype.

    Raises ValueError for quantized weights: quantizing the result would lose most of what was trained.
    """
    return _map_adapters(params, _merged)


def _merged(path: str, w: LoRA) -> Array:
    if isinstance(w.base, Quantized):
        raise ValueError(
            f'{path}: an adapter cannot be merged into {w.base.dtype} weights: save the adapter, and load it '
            'with the weights from before they were quantized'
        )
    return _merged_array(dataclasses.replace(w, key=None))


@jax.jit
def _merged_array(w: LoRA) -> Array:
    return w.astype(w.dtype)


def _map_adapters(params: Params, change: Callable[[str, LoRA], Any]) -> Params:
    leaves = ((path, change(path, w) if isinstance(w, LoRA) else w) for path, w in flat(params))
    return nested(leaves)
