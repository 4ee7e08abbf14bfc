"""The memory that training takes on each device of a mesh, from shapes alone: nothing is allocated."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vipllava_jax.arrays import flat, nested
from vipllava_jax.config import Config
from vipllava_jax.device_memory import SLACK, bytes_per_device, working_bytes
from vipllava_jax.model.quantized import Quantized
from vipllava_jax.sharding import AnyMesh, sharding
from vipllava_jax.training import lora
from vipllava_jax.training.optimizer import Optimizer
from vipllava_jax.training.parts import in_trained_part, split
from vipllava_jax.training.recipes import LORA
from vipllava_jax.training.settings import TrainingSettings
from vipllava_jax.training.shardings import state_shardings
from vipllava_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class TrainingMemory:
    """The bytes that training takes on each device."""

    trainable: int  # the trained weights, in `param_dtype`
    moments: int  # of the optimizer
    frozen: int
    gradients: int  # with the copy of the trained weights in the dtype of computation
    working: int  # an estimate of activations
    memory: int | None  # what the device has; None if that is not known

    @property
    def state(self) -> int:
        return self.trainable + self.moments

    @property
    def total(self) -> int:
        return self.state + self.frozen + self.gradients + self.working

    @property
    def fits(self) -> bool | None:
        """Whether it fits with SLACK to spare; None if the memory of the device is not known."""
        return None if self.memory is None else self.total <= self.memory * (1 - SLACK)


def plan_training(
    cfg: Config,
    shapes: Mapping[str, Any],
    settings: TrainingSettings,
    mesh: AnyMesh,
    memory: int | None,
    platform: str = 'tpu',
) -> TrainingMemory:
    """The memory that a run with these settings takes, for the shapes of a model's weights by path."""
    dtype = jnp.dtype(settings.dtype or 'bfloat16')
    trainable, frozen = _split(cfg, shapes, settings, dtype)
    optimizer = Optimizer(dataclasses.replace(settings, steps=1, epochs=None))
    moments = jax.eval_shape(lambda: optimizer.transform().init(_zeros(trainable)))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(step, trainable, moments)  # type: ignore[arg-type]
    places = state_shardings(state, mesh)
    in_float32 = _bytes(trainable, places.params, 4)
    return TrainingMemory(
        trainable=_bytes(trainable, places.params),
        moments=_bytes(moments, places.optimizer),
        frozen=bytes_per_device(dict(_without_adapters(frozen)), mesh),
        gradients=in_float32 + _bytes(trainable, places.params, dtype.itemsize),
        working=_working(cfg, settings, dtype, mesh, platform),
        memory=memory,
    )


def _split(
    cfg: Config, shapes: Mapping[str, Any], settings: TrainingSettings, dtype: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shapes of the trainable and frozen weights, in the dtypes of a run."""

    def cast(path: str, leaf: Any) -> Any:
        if isinstance(leaf, Quantized):
            return leaf
        trains = in_trained_part(path, settings.trains)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(settings.param_dtype) if trains else dtype)

    params = nested((path, cast(path, leaf)) for path, leaf in flat(dict(shapes)))
    if LORA in settings.trains:
        add = partial(lora.add, rank=settings.lora_rank, alpha=settings.lora_alpha)
        add = partial(add, targets=settings.lora_targets)
        params = jax.eval_shape(lambda params: add(params, cfg, key=jax.random.key(0)), params)
    trainable, frozen = split(params, settings.trains)
    param_dtype = jnp.dtype(settings.param_dtype)
    return jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, param_dtype), trainable), frozen


def _without_adapters(frozen: dict[str, Any]) -> Any:
    """The (path, shape) of each frozen weight, without its adapter, which is trainable."""
    for path, leaf in flat(frozen):
        yield path, leaf.base if hasattr(leaf, 'base') else leaf


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda w: jnp.zeros(w.shape), shapes)


def _bytes(tree: Any, places: Any, itemsize: int | None = None) -> int:
    """The bytes of each device for a tree of shapes and its shardings."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    return sum(math.prod(at.shard_shape(x.shape)) * (itemsize or x.dtype.itemsize) for x, at in pairs)


def _working(cfg: Config, settings: TrainingSettings, dtype: Any, mesh: AnyMesh, platform: str) -> int:
    """An estimate of activations: those stored for the backward pass, and those of one layer, twice."""
    rows, T = settings.batch // settings.accumulate, settings.max_length
    D, L, F = cfg.text.width, cfg.text.layers, cfg.text.mlp
    hidden = math.prod(_part('BTD', (rows, T, D), mesh)) * dtype.itemsize
    inner = math.prod(_part('BTF', (rows, T, F), mesh)) * dtype.itemsize
    stored = {'layers': hidden, 'products': 6 * hidden + 2 * inner, 'none': 12 * hidden + 4 * inner}
    fused = platform == 'gpu' and dtype.itemsize == 2
    layer = 2 * working_bytes(cfg, dtype, rows, T, mesh, fused_attention=fused)
    gathered = 0
    if mesh.shape.get('fsdp', 1) > 1:  # each device gathers the weights of two layers
        per_layer = 4 * D * cfg.text.heads * cfg.text.head_size + 3 * D * F
        gathered = 2 * per_layer * dtype.itemsize // mesh.shape.get('tensor', 1)
    return L * stored[settings.remat] + layer + gathered


def _part(letters: str, shape: tuple[int, ...], mesh: AnyMesh) -> tuple[int, ...]:
    return sharding(letters, shape, mesh).shard_shape(shape)
