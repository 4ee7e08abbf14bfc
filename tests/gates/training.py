"""Compiles a training step of all weights but the tower's on a mesh of devices that need not be present."""

from typing import Any

import jax
import jax.numpy as jnp

import vipllava_jax as vj
from tests.gates.program import pictures
from tests.training.optimizers import optimizer
from vipllava_jax.arrays import flat, nested
from vipllava_jax.data.examples import Examples
from vipllava_jax.sharding import Mesh, sharding
from vipllava_jax.training.parts import split
from vipllava_jax.training.shardings import state_shardings
from vipllava_jax.training.step import TrainState, make_step
from vipllava_jax.weight_sharding import leaf_sharding


def arguments(cfg: vj.Config, mesh: Mesh, B: int, T: int) -> Any:
    """The shapes of a step's state in float32, of the frozen weights in bfloat16, and of a batch."""
    adamw = optimizer(1e-4, 100)
    trainable, frozen = split(vj.abstract(cfg), {'projector', 'llama'})
    moments = jax.eval_shape(
        lambda: adamw.transform().init(jax.tree.map(lambda w: jnp.zeros(w.shape), trainable))
    )
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), trainable, moments)
    state = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, state_shardings(state, mesh)
    )
    frozen = nested(
        (path, jax.ShapeDtypeStruct(w.shape, jnp.bfloat16, sharding=leaf_sharding(path, w, mesh)))
        for path, w in flat(frozen)
    )

    def rows(letters, *shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(letters, shape, mesh))

    pixels = rows('ABIhwc', 1, *pictures(cfg, B).shape, dtype=jnp.uint8)
    batch = Examples(rows('ABT', 1, B, T), rows('ABT', 1, B, T), pixels, rows('AB', 1, B))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding('', (), mesh))
    return state, frozen, batch, key


def compile_step(cfg: vj.Config, arguments: Any) -> Any:
    """The compiled step for the shapes of its arguments, with `remat` of whole layers."""
    step = make_step(
        cfg,
        optimizer(1e-4, 100),
        shardings=jax.tree.map(lambda x: x.sharding, arguments[0]),
        normalize=lambda images: images.astype(jnp.bfloat16) / 255,
    )
    return step.trace(*arguments).lower().compile()
