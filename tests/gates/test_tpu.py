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
BY_HAND = pytest.mark.by_hand  # variants of others that CI runs
CHIPS = [pytest.param(chip, marks=[] if chip == 'v6e:1x1' else BY_HAND) for chip in MEMORY]
KERNELS = {1: 27, 8: 23}  # per layer, by batch size


def fits(chip: str, size: int) -> bool:
    return size < MEMORY[chip] * 2**30 * 0.9  # 10 % margin


def load(cfg, device, quantize=None):
    """The shapes of the params, placed as `vj.load` does on a TPU."""
    params = program.place(program.weights(cfg, quantize), device)
    llama = params['llama']
    return {**params, 'llama': program.place(llama, placement.formats(llama, cfg))}


@pytest.mark.parametrize(
    ('chip', 'quantize', 'B'),
    [
        ('v5e:1x1', None, 1),
        pytest.param('v5p:2x2x1', None, 1, marks=BY_HAND),
        ('v5p:2x2x1', None, 8),
        pytest.param('v6e:1x1', None, 1, marks=BY_HAND),
        ('v6e:1x1', None, 8),
        pytest.param('v5e:1x1', 'int8', 1, marks=BY_HAND),
        pytest.param('v5e:1x1', 'int8', 8, marks=BY_HAND),
        pytest.param('v5p:2x2x1', 'int8', 8, marks=BY_HAND),
        ('v6e:1x1', 'int8', 8),
    ],
)
def test_decode(chip, quantize, B):
    device = program.device_of('tpu', chip)
    whole = chip == 'v5e:1x1' and B == 8  # which just fits; the others compile faster
    cfg = CFG if whole else program.with_layers(CFG)
    params = load(cfg, device, quantize)
    compiled = program.decode(params, cfg, B, device)
    text, cache = compiled.as_text(), program.state(cfg, B).cache
    loop = program.loop(text)
    assert fits(chip, program.bytes_in_use(compiled, params, cfg, cache))
    donated = compiled.memory_analysis().alias_size_in_bytes
    assert donated >= program.size_in_bytes(cache)  # the caches are updated in place
    assert not program.copies(text)
    assert not program.large_results(program.entry(text) + loop, cache)
    # The compiler may keep some caches in fast memory and copy them back: a few, or with int8 all keys.
    keys = program.size_in_bytes(cache.k) if quantize else 0
    assert program.bytes_copied_back(loop) < keys + 2**27
    assert program.kernel_count(loop) < KERNELS[B] * cfg.text.layers + 40


@pytest.mark.parametrize(
    ('chip', 'B'),
    [('v5e:1x1', 1), pytest.param('v5p:2x2x1', 8, marks=BY_HAND), pytest.param('v6e:1x1', 8, marks=BY_HAND)],
)
def test_prefill(chip, B):
    device = program.device_of('tpu', chip)
    params = load(SHALLOW, device)
    compiled = program.prefill(params, SHALLOW, B, device)
    text = compiled.as_text()
    assert fits(chip, program.bytes_in_use(compiled, params, SHALLOW, program.state(SHALLOW, B).cache))
    assert not program.copied_weights(text, params)
    assert f'[{B},{program.PROMPT},{CFG.text.vocab}]' not in text  # only the logits of the last tokens


@pytest.mark.parametrize('chip', CHIPS)
def test_rows_that_share_a_prefix_update_their_caches_in_place(chip):
    device = program.device_of('tpu', chip)
    params = load(SHALLOW, device)
    compiled = program.decode_after_prefix(params, SHALLOW, 8, device)
    text, cache = compiled.as_text(), program.state(SHALLOW, 8).cache
    assert compiled.memory_analysis().alias_size_in_bytes >= program.size_in_bytes(cache)
    assert not [x for x in program.loop(text) if x.op == 'copy' and x.results[0][1] >= 2**20]
    assert set(program.copies(text)) <= {f'bf16[1,{program.PREFIX},32,128]'}  # once, before the loop
    assert not program.large_results(program.entry(text) + program.loop(text), cache)
    text = program.prefill_after_prefix(params, SHALLOW, 8, device).as_text()
    assert not program.copied_weights(text, params)


@pytest.mark.parametrize('chip', CHIPS)
def test_vision(chip):
    device = program.device_of('tpu', chip)
    params = load(SHALLOW, device)
    compiled = program.vision(params, SHALLOW, 8, device)
    text = compiled.as_text()
    assert fits(chip, program.bytes_in_use(compiled, params, SHALLOW))
    assert not program.copied_weights(text, params)
    assert program.kernel_count(program.entry(text)) < 15 * max(SHALLOW.taps) + 45
