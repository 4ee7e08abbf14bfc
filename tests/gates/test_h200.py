"""The 7B's programs compiled for an H200 that is not there: what they hold, alias and launch.

Needs the wheels jax-cuda13-plugin and jax-cuda13-pjrt, which need no NVIDIA library to compile.
"""

import dataclasses
import math
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

import vipllava_jax as vj
from vipllava_jax.generation import decoding
from vipllava_jax.inputs.processor import Batch
from vipllava_jax.model import llama

pytestmark = pytest.mark.gates
MEMORY = 141e9 * 0.9  # a tenth of slack
CFG = dataclasses.replace(vj.VIP_LLAVA_7B, attention='xla')  # cuDNN's needs its library to be lowered
BYTES = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 'pred': 1, 's8': 1, 'u8': 1}


@pytest.fixture(scope='module')
def on_h200():
    """Makes shapes live on the device that the text file describes."""
    described = Path(__file__).with_name('h200.textproto').read_text()
    topology = topologies.get_topology_desc(platform='cuda', target_config=described, topology='1x1x1')
    sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def place(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    return place


@pytest.fixture(scope='module')
def params():
    """The shapes of the 7B in bfloat16, fused as `load` does on a GPU."""
    params = vj.abstract(CFG, jnp.bfloat16)
    layers = {
        name: jax.eval_shape(llama.fuse, part) if name.startswith('layers_') else part
        for name, part in params['llama'].items()
    }
    return {**params, 'llama': layers}


def state(B: int, slots: int) -> decoding.State:
    def make():
        cache = llama.Cache.empty(CFG.text, B, slots, jnp.bfloat16)
        return decoding.State(cache, jnp.zeros(B, int), jnp.zeros(B, int), jnp.zeros(B, bool), None)

    return jax.eval_shape(make)


def held(compiled) -> int:
    """Bytes on the device while the program runs."""
    m = compiled.memory_analysis()
    return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes


def instructions(text: str, computation: str) -> list[tuple[str, str]]:
    """(operation, its line) of every instruction of a computation that does something."""
    body = re.search(r'\n(?:ENTRY )?%?' + re.escape(computation) + r' \(.*?\n\}', text, re.DOTALL)
    found = re.findall(r'\n\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\((.*)', body[0])
    free = ('get-tuple-element', 'parameter', 'tuple', 'constant', 'bitcast')
    return [(op, line) for op, line in found if op not in free]


def size(shape: str) -> int:
    """'bf16[1,1024,32,128]' -> its bytes."""
    dtype, dims = re.match(r'(\w+)\[([\d,]*)\]', shape).groups()
    return BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(','))))


@pytest.mark.parametrize(('B', 'kernels'), [(1, 22), (8, 19)])
def test_decode(on_h200, params, B, kernels):
    before = state(B, 1024)
    lowered = decoding.advance.trace(on_h200(params), on_h200(before), cfg=CFG, steps=8).lower()
    compiled = lowered.compile()
    text = compiled.as_text()
    assert held(compiled) < MEMORY
    cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(before.cache))
    assert compiled.memory_analysis().alias_size_in_bytes >= cache  # donated, so written in place
    loop = re.search(r'body=%?([\w.\-]+)', text)[1]
    kinds = Counter(op for op, _ in instructions(text, loop))
    assert set(kinds) <= {'fusion', 'fusion-start', 'fusion-done', 'custom-call'}, kinds
    moved = re.findall(r'= (\w+\[[\d,]*\])\S* (?:copy|transpose)\(', text)
    assert max(map(size, moved), default=0) < 2**20
    assert kinds.total() <= kernels * CFG.text.layers + 20, kinds


def test_prefill_and_vision(on_h200, params):
    B, T, pixels = 8, 640, CFG.vision.image_size
    batch = Batch(
        jax.ShapeDtypeStruct((B, T), jnp.int32),
        jax.ShapeDtypeStruct((B,), jnp.int32),
        jax.ShapeDtypeStruct((B, 1, pixels, pixels, 3), jnp.float32),
        jax.ShapeDtypeStruct((B,), jnp.int32),
    )
    compiled = (
        decoding.start.trace(on_h200(params), on_h200(batch), None, cfg=CFG, slots=768).lower().compile()
    )
    assert held(compiled) < MEMORY
    text = compiled.as_text()
    assert 'layers_22' in text  # the deepest tap is the output of this block
    assert not re.search(r'clip/layers_23', text)
    # The logits of each row's last token alone.
    assert f'f32[{B},{CFG.text.vocab}]' in text
    assert f'[{B},{T},{CFG.text.vocab}]' not in text
