"""Compiles a training step of a shallow 7B for four H200, with the state divided over all of them.

Needs the same wheels as `test_h200`.
"""

import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

import vipllava_jax as vj
from tests.gates.program import SHALLOW, pictures, size_in_bytes
from tests.training.optimizers import optimizer
from vipllava_jax.arrays import flat, nested
from vipllava_jax.data.examples import Examples
from vipllava_jax.sharding import make_mesh, sharding
from vipllava_jax.training.parts import split
from vipllava_jax.training.shardings import state_shardings
from vipllava_jax.training.step import TrainState, make_step
from vipllava_jax.weight_sharding import leaf_sharding

pytestmark = pytest.mark.gates
DEVICES, B, T = 4, 16, 1024


@pytest.fixture(scope='module')
def mesh():
    description = Path(__file__).with_name('h200.textproto').read_text()
    devices = topologies.get_topology_desc(
        '', platform='cuda', topology=f'1x{DEVICES}x1', target_config=description
    ).devices
    return make_mesh({'fsdp': DEVICES}, devices=devices)


@pytest.fixture(scope='module')
def arguments(mesh):
    """The shapes of a step's state in float32, of the frozen weights in bfloat16, and of a batch."""
    adamw = optimizer(1e-4, 100)
    trainable, frozen = split(vj.abstract(SHALLOW), {'projector', 'llama'})
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

    pixels = rows('ABIhwc', 1, *pictures(SHALLOW, B).shape, dtype=jnp.uint8)
    batch = Examples(rows('ABT', 1, B, T), rows('ABT', 1, B, T), pixels, rows('AB', 1, B))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding('', (), mesh))
    return state, frozen, batch, key


@pytest.fixture(scope='module')
def compiled(arguments):
    step = make_step(
        SHALLOW,
        optimizer(1e-4, 100),
        shardings=jax.tree.map(lambda x: x.sharding, arguments[0]),
        normalize=lambda images: images.astype(jnp.bfloat16) / 255,
    )
    return step.trace(*arguments).lower().compile()


def test_each_device_holds_its_part_of_the_state(compiled, arguments):
    memory = compiled.memory_analysis()
    state = size_in_bytes(arguments[0])
    assert memory.argument_size_in_bytes < 1.02 * state / DEVICES
    assert memory.alias_size_in_bytes > 0.999 * state / DEVICES  # the state is updated in place
    # the gathered weights of a layer or two, and the logits of a piece, not those of the whole model
    assert memory.temp_size_in_bytes < 4.2e9


def test_weights_are_gathered_in_bfloat16_and_gradients_are_scattered(compiled):
    collectives = re.findall(
        r'= (.*?) (all-gather|all-reduce|reduce-scatter)(?:-start)?\(', compiled.as_text()
    )
    gathered, reduced = Counter(), Counter()
    for results, op in collectives:
        whole = re.findall(r'\w+\[(?:4096,32,128|32,128,4096|4096,11008|11008,4096)\]', results)
        (gathered if op == 'all-gather' else reduced).update(whole)
        for dtype, sizes in re.findall(r'(\w+)\[([\d,]+)\]', results):
            large = jnp.prod(jnp.array([int(n) for n in sizes.split(',')])) > 1e6
            assert op != 'all-reduce' or not large, results
            # only the gradients of the embeddings and the head are added in float32
            assert dtype != 'f32' or not large or '32064' in sizes, results
    layers = SHALLOW.text.layers
    # once for the forward and once for the backward pass, which computes the layer again
    assert gathered['bf16[4096,11008]'] == 2 * 2 * layers
    assert gathered['bf16[11008,4096]'] == 2 * layers
    assert gathered['bf16[4096,32,128]'] == 2 * 3 * layers
    assert {name.split('[')[0] for name in gathered + reduced} == {'bf16'}
    assert sum('32064' in results for results, op in collectives if op == 'all-gather') == 2
