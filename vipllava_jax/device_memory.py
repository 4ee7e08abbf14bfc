"""The memory that a model takes on each device of a mesh, from shapes alone: nothing is allocated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.typing import DTypeLike

from vipllava_jax.arrays import flat
from vipllava_jax.config import Config
from vipllava_jax.device_kinds import Fleet, fleet_of, gib
from vipllava_jax.inputs.batch import bucket
from vipllava_jax.mesh_text import AXES, row_parts
from vipllava_jax.sharding import AnyMesh, sharding
from vipllava_jax.weight_sharding import leaf_sharding

SLACK = 0.10  # the part of a device's memory that a plan leaves free


@dataclass(frozen=True)
class MemoryPlan:
    """The bytes that inference takes on each device."""

    weights: int
    cache: int
    working: int  # an estimate of activations and logits
    memory: int | None  # what the device has; None if that is not known

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.working

    @property
    def fits(self) -> bool | None:
        """Whether it fits with SLACK to spare; None if the memory of the device is not known."""
        return None if self.memory is None else self.total <= self.memory * (1 - SLACK)


def abstract_mesh(axes: Mapping[str, int]) -> AbstractMesh:
    """The mesh of `sharding.make_mesh` without devices: it may be larger than this machine."""
    names = [name for name in AXES if name in axes]
    return AbstractMesh(tuple(axes[n] for n in names), tuple(names), axis_types=(AxisType.Auto,) * len(names))


def bytes_per_device(shapes: Mapping[str, Any], mesh: AnyMesh) -> int:
    """The bytes of each device for params, given as arrays or shapes: a nested dict, or a dict by path."""
    return sum(leaf_bytes(path, leaf, mesh) for path, leaf in flat(dict(shapes)))


def leaf_bytes(path: str, leaf: Any, mesh: AnyMesh) -> int:
    """The bytes of each device for a weight, which may be quantized or have an adapter."""
    places = jax.tree.leaves(leaf_sharding(path, leaf, mesh))
    return sum(
        math.prod(place.shard_shape(x.shape)) * x.dtype.itemsize
        for x, place in zip(jax.tree.leaves(leaf), places, strict=True)
    )


def cache_bytes(cfg: Config, dtype: DTypeLike, rows: int, context: int, mesh: AnyMesh) -> int:
    """The bytes of each device for the keys and values of `rows` rows of `context` tokens, padded."""
    text = cfg.text
    shape = (_padded(rows, mesh), bucket(context), text.kv_heads, text.head_size)
    part = sharding('BSKH', shape, mesh).shard_shape(shape)
    return 2 * text.layers * math.prod(part) * jnp.dtype(dtype).itemsize


def working_bytes(
    cfg: Config, dtype: DTypeLike, rows: int, context: int, mesh: AnyMesh, *, fused_attention: bool = False
) -> int:
    """An estimate of the bytes of each device for activations and logits, at the peak.

    Each of the `rows` prompts has one image and fills the context. With `fused_attention`, that of cuDNN, the
    scores of attention are not stored.
    """
    b = _padded(rows, mesh) // row_parts(mesh.shape)
    tensor, size = mesh.shape.get('tensor', 1), jnp.dtype(dtype).itemsize
    text, vision, T = cfg.text.sizes, cfg.vision.sizes, bucket(context)

    def part(n: int) -> int:
        return n // tensor if n % tensor == 0 else n

    def layer(tokens: int, s: Mapping[str, int], keys: int, gates: int) -> int:
        """Bytes of a layer with `gates` activations of the MLP: its input, and attention or the MLP."""
        heads = part(s['N']) * s['H'] + 2 * part(s.get('K', s['N'])) * s['H']
        scores = 0 if fused_attention else b * part(s['N']) * tokens * keys * (4 + size)
        return 2 * b * tokens * s['D'] * size + max(
            b * tokens * heads * size + scores, gates * b * tokens * part(s['F']) * size
        )

    P, M = vision['P'], cfg.sizes['M']
    pixels = b * 3 * cfg.vision.image_size**2 * 4
    tower = pixels + b * P * M * size + layer(P, vision, P, 2)
    features = b * cfg.vision.patches * text['D'] * size
    prefill = features + layer(T, text, T, 3)
    logits = 2 * b * part(text['V']) * 4
    step = logits + layer(1, text, T, 3)
    return max(tower, prefill + logits, step)


def plan_memory(
    cfg: Config,
    shapes: Mapping[str, Any],
    mesh: AnyMesh,
    memory: int | None,
    *,
    batch: int = 1,
    context: int | None = None,
    platform: str = 'tpu',
) -> MemoryPlan:
    """The bytes of each device for inference with params of these shapes; `memory` is that of one device.

    `batch` rows of `context` tokens, by default all of the model's context, are answered together.
    """
    dtype, context = activation_dtype(shapes), context or cfg.text.context
    fused = platform == 'gpu' and jnp.dtype(dtype).itemsize == 2
    weights = bytes_per_device(shapes, mesh)
    working = working_bytes(cfg, dtype, batch, context, mesh, fused_attention=fused)
    if mesh.shape.get('fsdp', 1) > 1:  # XLA gathers the weights before the loop of decoding
        working += bytes_per_device(shapes, abstract_mesh({'tensor': mesh.shape.get('tensor', 1)}))
    return MemoryPlan(weights, cache_bytes(cfg, dtype, batch, context, mesh), working, memory)


def activation_dtype(shapes: Mapping[str, Any]) -> Any:
    """The dtype of activations and cache: that of the weights that are never quantized."""
    return dict(flat(dict(shapes)))['llama/norm/w'].dtype


def _padded(rows: int, mesh: AnyMesh) -> int:
    """The number of rows with those that pad the batch, so that the mesh divides it."""
    parts = row_parts(mesh.shape)
    return -(-rows // parts) * parts


class MeshChoice(NamedTuple):
    """The axes of a mesh, the memory that a model takes on it, and why the axes were chosen."""

    axes: dict[str, int]
    plan: MemoryPlan
    reason: str


def choose_mesh(
    cfg: Config,
    shapes: Mapping[str, Any],
    devices: Sequence[Any] | None = None,
    *,
    batch: int = 1,
    context: int | None = None,
) -> dict[str, int]:
    """The axes of the mesh for inference with params of these shapes on some devices, by default all.

    Raises ValueError if the model does not fit on any mesh.
    """
    return explain_mesh(cfg, shapes, fleet_of(devices), batch=batch, context=context).axes


def explain_mesh(
    cfg: Config, shapes: Mapping[str, Any], fleet: Fleet, *, batch: int = 1, context: int | None = None
) -> MeshChoice:
    """The mesh for inference: the fewest devices of `tensor` on which the model fits, the others for `data`.

    `tensor` divides the heads and the MLP evenly. Raises ValueError, saying what would help, if the model
    does not fit on any mesh.
    """
    plans = {}
    for tensor in _tensor_sizes(cfg, fleet):
        axes = {'data': fleet.count // tensor, 'tensor': tensor}
        plans[tensor] = plan_memory(
            cfg,
            shapes,
            abstract_mesh(axes),
            fleet.memory,
            batch=batch,
            context=context,
            platform=fleet.platform,
        )
        if plans[tensor].fits is not False:
            used = {name: size for name, size in axes.items() if size > 1} or {'data': 1}
            return MeshChoice(used, plans[tensor], _reason(plans, tensor, fleet))
    raise ValueError(_no_mesh(shapes, plans, fleet, batch, context or cfg.text.context))


def _tensor_sizes(cfg: Config, fleet: Fleet) -> list[int]:
    """The sizes of `tensor` that divide heads and MLP, and over several hosts the number of devices."""
    text = cfg.text
    largest = math.gcd(text.kv_heads, text.heads, text.mlp)
    one_host = fleet.per_host == fleet.count
    return [n for n in range(1, fleet.count + 1) if largest % n == 0 and (one_host or fleet.count % n == 0)]


def _reason(plans: Mapping[int, MemoryPlan], tensor: int, fleet: Fleet) -> str:
    """Why `tensor` has this size, in one sentence."""
    plan, data = plans[tensor], fleet.count // tensor
    idle = fleet.count - data * tensor
    rest = f', and {idle} of {fleet.count} devices are left over' if idle else ''
    if plan.memory is None:
        return f'the memory of the devices is not known, so each has the whole model{rest}'
    if tensor == 1:
        if fleet.count == 1:
            return 'the model fits on the one device'
        return (
            'the model fits on one device, so each has all of it and answers its own rows: data parallelism '
            f'is for throughput, tensor parallelism for what does not fit{rest}'
        )
    smaller = max(n for n in plans if n < tensor)
    why = (
        f'the model needs {tensor} devices: on {smaller} it would take '
        f'{gib(plans[smaller].total)} of the {gib(plan.memory)} of each, and {SLACK:.0%} must stay free'
    )
    hosts = (
        f'; tensor spans hosts of {fleet.per_host} devices, which is slow' if tensor > fleet.per_host else ''
    )
    more = f'; the {data} groups answer their own rows' if data > 1 else ''
    return why + more + hosts + rest


def _decoder_dtype(shapes: Mapping[str, Any]) -> str:
    """The dtype of the decoder's large weights."""
    return next(
        leaf.dtype.name for path, leaf in flat(dict(shapes)) if path.endswith('/o/w') and 'llama' in path
    )


def _no_mesh(
    shapes: Mapping[str, Any], plans: Mapping[int, MemoryPlan], fleet: Fleet, batch: int, context: int
) -> str:
    """The message if the model does not fit on any mesh, with what would help."""
    tensor, plan = max(plans.items())
    assert fleet.memory is not None
    smaller = {'int4': None, 'int8': 'quantize to int4'}.get(
        _decoder_dtype(shapes), 'quantize to int8 or int4'
    )
    advice = [smaller] if smaller else []
    if plan.cache > plan.total / 10:
        advice.append('use a shorter context or a smaller batch')
    advice.append('use more devices, or devices with more memory')
    return (
        f'mesh auto: over {tensor} of {fleet.count} devices, the model takes {gib(plan.total)} of each '
        f'({gib(plan.weights)} weights, {gib(plan.cache)} cache of {batch} x {context} tokens, about '
        f'{gib(plan.working)} to work in), but they have {gib(fleet.memory)}, of which {SLACK:.0%} must stay '
        f'free: {"; or ".join(advice)}'
    )
