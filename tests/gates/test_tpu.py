"""Compiles the 7B for one chip of TPU v5e, v5p and v6e, in the layouts that the compiler chooses.

A v5e holds one row with bfloat16 weights, and a batch of 8 with int8 weights. Needs the wheel
libtpu, which needs no TPU to compile.
"""

import pytest

from tests.gates import program
from tests.gates.program import CFG, SHALLOW
from vipllava_jax import placement

pytestmark = pytest.mark.gates
MEMORY = {'v5e:1x1': 15.75, 'v5p:2x2x1': 95.73, 'v6e:1x1': 31.24}  # GiB, according to the compiler
CHIPS = list(MEMORY)
KERNELS = {1: 27, 8: 23}  # per layer, by batch size


def fits(chip: str, held: int) -> bool:
    return held < MEMORY[chip] * 2**30 * 0.9  # 10 % margin


def load(cfg, at, quantize=None):
    """The shapes of the params, placed as `vj.load` does on a TPU."""
    params = program.place(program.weights(cfg, quantize), at)
    llama = params['llama']
    return {**params, 'llama': program.place(llama, placement.formats(llama, cfg))}


@pytest.mark.parametrize(
    ('chip', 'quantize', 'B'),
    [
        ('v5e:1x1', None, 1),
        ('v5p:2x2x1', None, 1),
        ('v5p:2x2x1', None, 8),
        ('v6e:1x1', None, 1),
        ('v6e:1x1', None, 8),
        ('v5e:1x1', 'int8', 1),
        ('v5e:1x1', 'int8', 8),
        ('v5p:2x2x1', 'int8', 8),
        ('v6e:1x1', 'int8', 8),
    ],
)
def test_decode(chip, quantize, B):
    at = program.one('tpu', chip)
    params = load(CFG, at, quantize)
    compiled = program.decode(params, CFG, B, at)
    text, cache = compiled.as_text(), program.state(CFG, B).cache
    loop = program.loop(text)
    assert fits(chip, program.held(compiled, params, CFG, B))
    assert compiled.memory_analysis().alias_size_in_bytes >= program.weigh(cache)  # donated, updated in place
    assert not program.moved(text)
    assert not program.made(program.entry(text) + loop, cache)
    # The compiler may keep some caches in fast memory and copy them back: a few, or with int8 all keys.
    few = 0.01 * program.weigh(params['llama'])
    assert program.returned(loop) < (program.weigh(cache.k) if quantize else 0) + few
    assert program.kernels(loop) < KERNELS[B] * CFG.text.layers + 10


@pytest.mark.parametrize(('chip', 'B'), [('v5e:1x1', 1), ('v5p:2x2x1', 8), ('v6e:1x1', 8)])
def test_prefill(chip, B):
    at = program.one('tpu', chip)
    params = load(SHALLOW, at)
    compiled = program.prefill(params, SHALLOW, B, at)
    text = compiled.as_text()
    assert fits(chip, program.held(compiled, params, SHALLOW, B))
    assert not program.moved_weights(text, params)
    assert f'[{B},{program.PROMPT},{CFG.text.vocab}]' not in text  # only the logits of the last tokens


@pytest.mark.parametrize('chip', CHIPS)
def test_vision(chip):
    at = program.one('tpu', chip)
    params = load(SHALLOW, at)
    compiled = program.vision(params, SHALLOW, 8, at)
    text = compiled.as_text()
    assert fits(chip, program.held(compiled, params, SHALLOW))
    assert not program.moved_weights(text, params)
    assert program.kernels(program.entry(text)) < 15 * max(SHALLOW.taps) + 45
