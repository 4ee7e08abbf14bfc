"""The 7B on one chip of TPU v5e, v5p and v6e, in bfloat16 and the layouts that the compiler chose.

A v5e holds one row beside the weights: a batch of 8 waits for smaller weights or more chips. Needs the
wheel libtpu, which needs no TPU to compile.
"""

import jax.numpy as jnp
import pytest

import vipllava_jax as vj
from tests.gates import program
from tests.gates.program import CFG, SHALLOW
from vipllava_jax.generation import decoding

pytestmark = pytest.mark.gates
MEMORY = {'v5e:1x1': 15.75, 'v5p:2x2x1': 95.73, 'v6e:1x1': 31.24}  # GiB that the compiler says there are
CHIPS = list(MEMORY)
KERNELS = {1: 27, 8: 21}  # a layer, by batch


def fits(chip: str, held: int) -> bool:
    return held < MEMORY[chip] * 2**30 * 0.9  # a tenth of slack


def load(cfg, at):
    """The shapes of the params, placed as `vj.load` does on a TPU."""
    params = program.place(vj.abstract(cfg, jnp.bfloat16), at)
    llama = params['llama']
    return {**params, 'llama': program.place(llama, decoding.formats(llama, cfg))}


@pytest.mark.parametrize(
    ('chip', 'B'), [(chip, B) for chip in CHIPS for B in KERNELS if (chip, B) != (CHIPS[0], 8)]
)
def test_decode(chip, B):
    at = program.one('tpu', chip)
    params = load(CFG, at)
    compiled = program.decode(params, CFG, B, at)
    text, cache = compiled.as_text(), program.state(CFG, B).cache
    loop = program.loop(text)
    assert fits(chip, program.held(compiled, params, CFG, B))
    assert compiled.memory_analysis().alias_size_in_bytes >= program.weigh(cache)  # donated, written in place
    assert not program.moved(text)
    assert not program.made(loop, cache)
    # The compiler may keep a few caches in fast memory and write them back whole: of what is read, nothing.
    assert program.returned(loop) < 0.01 * program.weigh(params['llama'])
    assert program.kernels(loop) < KERNELS[B] * CFG.text.layers + 10


@pytest.mark.parametrize(('chip', 'B'), [('v5e:1x1', 1), ('v5p:2x2x1', 8), ('v6e:1x1', 8)])
def test_prefill(chip, B):
    at = program.one('tpu', chip)
    params = load(SHALLOW, at)
    compiled = program.prefill(params, SHALLOW, B, at)
    text = compiled.as_text()
    assert fits(chip, program.held(compiled, params, SHALLOW, B))
    assert not program.moved_weights(text, params)
    assert f'[{B},{program.PROMPT},{CFG.text.vocab}]' not in text  # the logits of the last tokens alone


@pytest.mark.parametrize('chip', CHIPS)
def test_vision(chip):
    at = program.one('tpu', chip)
    params = load(SHALLOW, at)
    compiled = program.vision(params, SHALLOW, 8, at)
    text = compiled.as_text()
    assert fits(chip, program.held(compiled, params, SHALLOW))
    assert not program.moved_weights(text, params)
    assert program.kernels(program.entry(text)) < 15 * max(SHALLOW.taps) + 45
