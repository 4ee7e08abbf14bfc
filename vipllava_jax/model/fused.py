"""Weights that have the same input, fused into one weight, so that products are larger and faster."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from vipllava_jax.model.equations import axes
from vipllava_jax.model.weights import LoRA, WeightAxes, map_output_axes


class Fused(NamedTuple):
    """Weights of a layer that have the same input, and the product with all of them fused into one weight.

    Axis X of the fused weight counts its parts. In qkv DXKH the first G parts are q, one query head of each
    key/value head, and the last two are k and v. In gate_up DXF the two parts are gate and up.
    """

    name: str  # of the fused weight's module
    members: tuple[str, ...]  # the names of the modules whose weights are fused, in order
    equation: str

    @property
    def axes(self) -> WeightAxes:
        """The axes of the fused weight."""
        found = axes(self.equation)
        return WeightAxes(found.weight, found.contracted)

    def fuse(self, *ws: Any) -> Any:
        """The weights of the members, such as DNH, DKH, DKH -> the fused weight, such as DXKH."""

        def join(*ws: Array) -> Array:
            D, K, *H = ws[-1].shape
            return jnp.concatenate([w.reshape(D, K, -1, *H).swapaxes(1, 2) for w in ws], axis=1)

        return map_output_axes(join, *ws)

    def split(self, w: Array) -> dict[str, Array]:
        """The inverse of `fuse` for a weight that is not quantized -> the weights of the members, by name."""
        D, X, _, *H = w.shape
        first = X - len(self.members) + 1  # the number of parts of the first member; the others have one
        parts = jnp.split(w, list(range(first, X)), axis=1)
        weights = (part.swapaxes(1, 2).reshape(D, -1, *H) for part in parts)
        return dict(zip(self.members, weights, strict=True))


QKV = Fused('qkv', ('q', 'k', 'v'), 'BTD,DXKH->BTXKH')
GATE_UP = Fused('gate_up', ('gate', 'up'), 'BTD,DXF->BTXF')
FUSED = (QKV, GATE_UP)


def fuse(layer: dict[str, Any], weights: Sequence[Fused] = FUSED) -> dict[str, Any]:
    """Joins q, k, v of a layer's params into one weight DXKH and gate, up into one DXF, for larger products.

    The axes K and F stay intact, so that they can be sharded. `weights` may select one of the two. A layer
    with LoRA is returned unchanged, because the adapters of the joined weights differ.
    """
    if any(isinstance(module.get('w'), LoRA) for module in layer.values()):
        return layer
    layer = dict(layer)
    for fused in weights:
        layer[fused.name] = {'w': fused.fuse(*(layer.pop(member)['w'] for member in fused.members))}
    return layer


def split_fused(path: str, w: Array) -> Iterator[tuple[str, Array]]:
    """A weight that is not quantized, and its path -> the weights that were fused into it, or itself."""
    *parents, name, leaf = path.split('/')
    for fused in FUSED:
        if name == fused.name:
            for member, part in fused.split(w).items():
                yield '/'.join([*parents, member, leaf]), part
            return
    yield path, w


def shared_input(path: str) -> str:
    """A name for the input of a weight, equal for weights with the same input.

    'llama/layers_0/v/w' -> 'llama/layers_0/qkv', the path of the module that would fuse them.
    """
    layer, name, _ = path.rsplit('/', 2)
    return f'{layer}/{next((fused.name for fused in FUSED if name in fused.members), name)}'
