"""Compiles a training step of a shallow 7B for four H200, with the state divided over all of them.

Needs the same wheels as `test_h200`.
"""

import re
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import pytest

from tests.gates import program, training
from tests.gates.program import SHALLOW
from vipllava_jax.sharding import make_mesh

pytestmark = pytest.mark.gates
DEVICES, B, T = 4, 16, 1024


@pytest.fixture(scope='module')
def mesh():
    description = Path(__file__).with_name('h200.textproto').read_text()
    devices = program.devices_of('cuda', topology=f'1x{DEVICES}x1', target_config=description)
    return make_mesh({'fsdp': DEVICES}, devices=devices)


@pytest.fixture(scope='module')
def arguments(mesh):
    return training.arguments(SHALLOW, mesh, B, T)


@pytest.fixture(scope='module')
def compiled(arguments):
    return training.compile_step(SHALLOW, arguments)


def test_each_device_holds_its_part_of_the_state(compiled, arguments):
    memory = compiled.memory_analysis()
    state = program.size_in_bytes(arguments[0])  # of each device
    assert memory.argument_size_in_bytes < 1.02 * state
    assert memory.alias_size_in_bytes > 0.999 * state  # the state is updated in place
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
