"""Places weights on a device or a mesh, fused or not, in the memory formats that are fastest there."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, Sharding

from vipllava_jax.arrays import flat
from vipllava_jax.config import Config
from vipllava_jax.mesh_text import row_parts
from vipllava_jax.model import fused, vipllava
from vipllava_jax.model.fused import Fused
from vipllava_jax.model.llama import Cache
from vipllava_jax.model.vipllava import Params
from vipllava_jax.model.weights import LoRA
from vipllava_jax.sharding import RULES, default_sharding, mesh_of, pin
from vipllava_jax.weight_sharding import leaf_sharding, with_divisible_groups


def place(params: Params, cfg: Config, *, fuse: bool | None = None, mesh: Mesh | None = None) -> Params:
    """Params in the layout of a checkpoint -> in the fastest one for the device; modifies them in place.

    On a mesh, every weight gets the sharding of its letters. `fuse` joins weights that have the same input
    (None: on a GPU), except those that the mesh could then no longer divide. At most one layer is in memory
    twice.
    """
    if mesh is None:
        return _placed(params, cfg, fuse, jax.jit(fused.fuse), jax.device_put)
    _move_to_mesh(params, mesh, jax.device_put)
    fuse_layer = functools.partial(_fuse_on_mesh, weights=fused_weights(cfg, mesh), mesh=mesh)
    return _placed(params, cfg, fuse, fuse_layer, jax.device_put)


def place_shapes(
    params: Params, cfg: Config, *, fuse: bool | None = None, mesh: Mesh | None = None
) -> Params:
    """The shapes of params in the layout of a checkpoint -> those of `place`, with shardings or formats."""
    if mesh is None:
        device = default_sharding()

        def fuse_layer(layer: Params) -> Params:
            return _with_shardings(jax.eval_shape(fused.fuse, layer), device)

        return _placed(_with_shardings(params, device), cfg, fuse, fuse_layer, _with_shardings)
    _move_to_mesh(params, mesh, _with_shardings)
    weights = fused_weights(cfg, mesh)

    def fused_on_mesh(layer: Params) -> Params:
        layer = jax.eval_shape(functools.partial(fused.fuse, weights=weights), layer)
        _move_to_mesh(layer, mesh, _with_shardings, 'llama/layers_0/')
        return layer

    return _placed(params, cfg, fuse, fused_on_mesh, _with_shardings)


def fused_weights(cfg: Config, mesh: Mesh | None) -> tuple[Fused, ...]:
    """The weights to fuse on a mesh: those whose axis K or F its `tensor` axis divides.

    Otherwise q, which `tensor` may divide by its heads, would become whole on every device.
    """
    devices = mesh.shape.get('tensor', 1) if mesh else 1
    return tuple(
        weight
        for weight in fused.FUSED
        if not any(
            cfg.text.sizes[letter] % devices
            for letter in weight.axes.letters
            if 'tensor' in RULES.get(letter, ())
        )
    )


@functools.partial(jax.jit, static_argnames=('weights', 'mesh'))
def _fuse_on_mesh(layer: Params, *, weights: tuple[Fused, ...], mesh: Mesh) -> Params:
    """`fused.fuse` with some of the weights, all of them sharded by their letters."""
    layer = fused.fuse(layer, weights)
    return {
        name: {
            part: jax.lax.with_sharding_constraint(w, leaf_sharding(f'llama/layers_0/{name}/{part}', w, mesh))
            for part, w in module.items()
        }
        for name, module in layer.items()
    }


def _move_to_mesh(params: Params, mesh: Mesh, put: Callable[[Any, Any], Any], prefix: str = '') -> None:
    """Gives every leaf the sharding of its path, prefixed with `prefix`; modifies the params."""
    for name, node in params.items():
        path = f'{prefix}{name}'
        if isinstance(node, dict):
            _move_to_mesh(node, mesh, put, f'{path}/')
        else:
            leaf = with_divisible_groups(path, node, mesh)
            params[name] = put(leaf, leaf_sharding(path, leaf, mesh))


def _placed(
    params: Params,
    cfg: Config,
    fuse: bool | None,
    fused: Callable[[Params], Params],
    put: Callable[[Any, Any], Any],
) -> Params:
    """Params, or their shapes, in the layout of the device: `fused` joins weights, `put` sets their formats.

    Formats are set on a TPU only: elsewhere the default ones are the fastest.
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
    of one layer and a batch of 8, or of 8 rows per device; programs for other batch and cache sizes use them
    without copies. A format on a mesh includes the sharding.
    """
    one_layer = {
        name: w for name, w in decoder.items() if name == 'layers_0' or not name.startswith('layers_')
    }
    shapes = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=w.sharding), one_layer)
    cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, layers=1))
    mesh, auto, rows = mesh_of(one_layer), Format(Layout.AUTO), 8
    if mesh:
        auto = jax.tree.map(lambda w: Format(Layout.AUTO, w.sharding), one_layer)
        rows *= row_parts(mesh.shape)

    def step(decoder: Params, tokens: Array) -> tuple[Array, Cache]:
        cache = Cache.empty(cfg.text, rows, 1024, decoder['norm']['w'].dtype)
        if mesh:
            cache = jax.tree.map(lambda x: pin(x, 'BSKH', mesh), cache)
        return vipllava.decode({'llama': decoder}, tokens, cache, tokens, cfg=cfg)

    choose = jax.jit(step, in_shardings=(auto, None))
    (chosen, _), _ = choose.lower(shapes, jax.ShapeDtypeStruct((rows,), jnp.int32)).compile().input_formats
    return {name: chosen['layers_0' if name.startswith('layers_') else name] for name in decoder}


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    """`jax.device_put` for shapes: sets their shardings or formats, one for all or a tree of them."""
    if isinstance(shardings, Sharding | Format):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, shardings)


def _on(backend: str) -> bool:
    return jax.default_backend() == backend
