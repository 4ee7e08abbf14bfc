"""Places weights on a device, fused or not, in the memory formats that are fastest there."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from vipllava_jax.arrays import flat
from vipllava_jax.config import Config
from vipllava_jax.model import llama, vipllava
from vipllava_jax.model.llama import Cache
from vipllava_jax.model.params import weight_axes
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.model.vipllava import Params
from vipllava_jax.model.weights import LoRA
from vipllava_jax.sharding import default_sharding, sharding


def place(params: Params, cfg: Config, *, fuse: bool | None = None) -> Params:
    """Params in the layout of a checkpoint -> in the fastest one for the device; modifies them in place.

    `fuse` joins weights that have the same input (None: on a GPU). At most one layer is in memory twice.
    """
    return _placed(params, cfg, fuse, jax.jit(llama.fuse), jax.device_put)


def place_shapes(params: Params, cfg: Config, *, fuse: bool | None = None) -> Params:
    """The shapes of params in the layout of a checkpoint -> those of `place`, with shardings or formats."""
    device = default_sharding()

    def fused(layer: Params) -> Params:
        return _with_shardings(jax.eval_shape(llama.fuse, layer), device)

    return _placed(_with_shardings(params, device), cfg, fuse, fused, _with_shardings)


def _placed(
    params: Params,
    cfg: Config,
    fuse: bool | None,
    fused: Callable[[Params], Params],
    put: Callable[[Any, Any], Any],
) -> Params:
    """Params or their shapes in the layout of the device: `fused` joins weights, `put` sets their formats.

    Only on a TPU are there formats that the compiler prefers to the default.
    """
    decoder = params['llama']
    if _on('gpu') if fuse is None else fuse:
        for name in [name for name in decoder if name.startswith('layers_')]:
            decoder[name] = fused(decoder.pop(name))
    # the formats are those of one layer, but the layers may have different adapters
    if _on('tpu') and not any(isinstance(w, LoRA) for _, w in flat(decoder)):
        for name, format in formats(decoder, cfg).items():
            decoder[name] = put(decoder.pop(name), format)
    return params


def formats(decoder: Params, cfg: Config) -> Params:
    """The decoder's weights, or their shapes -> the memory format the compiler prefers for each in decoding.

    On a TPU, decoding would otherwise copy q, k and v to other formats on every call. The formats are those
    of one layer and a batch of 8; programs for other batch and cache sizes use them without copies.
    """
    kept = {name: w for name, w in decoder.items() if name == 'layers_0' or not name.startswith('layers_')}
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), kept)
    cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, layers=1))

    def step(decoder: Params, tokens: Array) -> tuple[Array, Cache]:
        cache = Cache.empty(cfg.text, 8, 1024, decoder['norm']['w'].dtype)
        return vipllava.decode({'llama': decoder}, tokens, cache, tokens, cfg=cfg)

    choose = jax.jit(step, in_shardings=(Format(Layout.AUTO), None))
    (chosen, _), _ = choose.lower(shapes, jax.ShapeDtypeStruct((8,), jnp.int32)).compile().input_formats
    return {name: chosen['layers_0' if name.startswith('layers_') else name] for name in decoder}


def leaf_sharding(path: str, leaf: Any, mesh: Mesh | None) -> Any:
    """The sharding of a weight or its shape by the letters of its path; a tree of them if it has parts.

    Without a mesh, all weights are on the first local device.
    """
    axes = weight_axes(path)

    def place(letters: str, x: Any) -> Any:
        return sharding(letters, x.shape, mesh)

    if isinstance(leaf, LoRA):
        base = leaf_sharding(path, leaf.base, mesh)
        a, b = place(axes.contracted + 'R', leaf.a), place('R' + axes.output, leaf.b)
        return dataclasses.replace(leaf, base=base, a=a, b=b)
    if isinstance(leaf, Quantized):
        values = place(axes.output + axes.contracted, leaf.values)
        # the groups of int4 flatten the contracted axes, of which a mesh divides the outermost
        groups = axes.contracted[: leaf.scale.ndim - leaf.output_axes]
        return dataclasses.replace(leaf, values=values, scale=place(axes.output + groups, leaf.scale))
    return place(axes.divisible, leaf)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    """`jax.device_put` for shapes: sets their shardings or formats, one for all or a tree of them."""
    if not isinstance(shardings, dict):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings)


def _on(backend: str) -> bool:
    return jax.default_backend() == backend
