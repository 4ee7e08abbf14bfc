"""Compiles the 7B for an H200 as described by the text file, with weights fused as by `load` on a GPU.

Needs the wheels jax-cuda13-plugin and jax-cuda13-pjrt, which need no NVIDIA library to compile.
"""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from tests.gates import program
from tests.gates.program import CFG, SHALLOW
from vipllava_jax.engine.programs import decode_lanes, put_rows
from vipllava_jax.model import fused
from vipllava_jax.model.attention import attend

pytestmark = pytest.mark.gates
MEMORY = 141e9 * 0.9  # 10 % margin


@pytest.fixture(scope='module')
def h200():
    description = Path(__file__).with_name('h200.textproto').read_text()
    return program.device_of('cuda', topology='1x1x1', target_config=description)


def load(device, quantize=None, cfg=CFG):
    """The shapes of the params, as fused by `vj.load` on a GPU."""
    params = program.weights(cfg, quantize)
    layers = {
        name: jax.eval_shape(fused.fuse, part) if name.startswith('layers_') else part
        for name, part in params['llama'].items()
    }
    return program.place({**params, 'llama': layers}, device)


@pytest.mark.parametrize(('rows', 'shares'), [(16, False), (128, True), (64, True)])
def test_lanes_that_divide_a_cache_update_it_in_place(h200, rows, shares, monkeypatch):
    """Rows of the engine, in the cache of 8 rows of 2,048 slots or in that of 64 of 1,024."""
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 92000)
    cfg = dataclasses.replace(program.with_layers(SHALLOW), attention='cudnn')
    params = load(h200, cfg=cfg)
    lane = program.lane(cfg, rows, (64, 1024) if shares else (8, 2048), h200)
    cache = program.size_in_bytes(lane.cache)
    own, numbers = program.lane(cfg, 16, (16, 64), h200), program.lane(cfg, 16, (16, 64), h200).tokens
    put = put_rows.trace(lane, numbers, own.cache, numbers, numbers).lower().compile()
    prefix = program.place(program.prefix(cfg, 1), h200) if shares else None
    newest = [lane.tokens], [lane.positions]
    decode = decode_lanes.trace(params, [lane.cache], *newest, prefix, cfg=cfg).lower().compile()
    for compiled in (put, decode):
        assert program.copies(compiled.as_text()) == []
        found = compiled.memory_analysis()
        assert found.alias_size_in_bytes >= cache
        assert found.temp_size_in_bytes < cache / 8


@pytest.mark.parametrize(
    ('quantize', 'attention', 'B', 'kernels'),
    [
        (None, 'xla', 1, 22),
        (None, 'xla', 8, 19),
        (None, 'cudnn', 1, 16),
        (None, 'cudnn', 8, 13),
        ('int8', 'xla', 1, 22),
        ('int8', 'xla', 8, 19),
        ('int8', 'cudnn', 1, 16),
        ('int8', 'cudnn', 8, 13),
        ('int4', 'cudnn', 1, 14),
        ('int4', 'cudnn', 4, 14),
    ],
)
def test_decode(h200, quantize, attention, B, kernels, monkeypatch):
    whole = quantize is None and B == 8  # other programs have fewer layers, to compile faster
    # Only the library's version is queried: a program that calls it compiles without it.
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 92000)
    cfg = dataclasses.replace(CFG if whole else program.with_layers(CFG), attention=attention)
    params = load(h200, quantize, cfg)
    compiled = program.decode(params, cfg, B, h200)
    text, cache = compiled.as_text(), program.state(cfg, B).cache
    loop = program.loop(text)
    assert program.bytes_in_use(compiled, params, cfg, cache) < MEMORY
    donated = compiled.memory_analysis().alias_size_in_bytes
    assert donated >= program.size_in_bytes(cache)  # the caches are updated in place
    ops = Counter(x.op for x in loop)
    assert set(ops) <= {'fusion', 'fusion-start', 'fusion-done', 'custom-call'}, ops
    assert not program.copies(text)
    assert not program.large_results(program.entry(text) + loop, cache)
    assert ops.total() <= kernels * cfg.text.layers + 20, ops


def count_attentions(computation):
    """The number of calls of cudnn's attention."""
    return sum('dot_product_attention' in x.line and x.op == 'custom-call' for x in computation)


def test_rows_that_share_a_prefix_read_it_once_and_update_their_caches_in_place(h200, monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 92000)
    cfg = dataclasses.replace(SHALLOW, attention='cudnn')
    compiled = program.decode_after_prefix(load(h200, cfg=cfg), cfg, 32, h200)
    text, cache = compiled.as_text(), program.state(cfg, 32).cache
    assert compiled.memory_analysis().alias_size_in_bytes >= program.size_in_bytes(cache)
    assert not program.copies(text)
    assert not program.large_results(program.entry(text) + program.loop(text), cache)
    assert count_attentions(program.loop(text)) == 2 * cfg.text.layers


def test_what_follows_a_prefix_is_prefilled_without_a_copy_of_it(h200, monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 92000)
    cfg = dataclasses.replace(SHALLOW, attention='cudnn')
    compiled = program.prefill_after_prefix(load(h200, cfg=cfg), cfg, 8, h200)
    text, cache = compiled.as_text(), program.state(cfg, 8).cache
    assert count_attentions(program.entry(text)) == 2 * cfg.text.layers
    assert compiled.memory_analysis().output_size_in_bytes < 1.01 * program.size_in_bytes(cache)


@pytest.mark.parametrize('attention', ['xla', 'cudnn'])
def test_beams_that_share_their_prompt_update_their_caches_in_place(h200, monkeypatch, attention):
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 92000)
    cfg = dataclasses.replace(SHALLOW, attention=attention)
    compiled, cache = program.search_beams(load(h200, cfg=cfg), cfg, 2, 4, h200)
    assert compiled.memory_analysis().alias_size_in_bytes >= program.size_in_bytes(cache)
    assert not program.large_results(program.entry(compiled.as_text()), cache)


def test_int4_dequantizes_one_weight_at_a_time_for_many_rows(h200):
    compiled = program.decode(load(h200, 'int4', SHALLOW), SHALLOW, 8, h200)
    largest = 2 * CFG.text.width * CFG.text.vocab
    assert largest <= compiled.memory_analysis().temp_size_in_bytes < 2 * largest


@pytest.mark.by_hand
def test_adapters_of_the_same_input_share_their_dropout(h200):
    words = program.ROWS * program.PROMPT * CFG.text.width // 4  # of random bits, for dropout on q's input

    def hashes(*targets: str) -> int:
        text = program.train(('projector', 'lora'), h200, *targets).as_text()
        return len(re.findall(rf'= u32\[{words}\]\S* xor\(', text))

    assert hashes('q') == hashes('q', 'k', 'v') > 0


@pytest.mark.by_hand
def test_gradients_have_the_dtype_of_the_weights(h200):
    text = program.train(('projector', 'llama'), h200).as_text()
    q = CFG.text.width, CFG.text.heads, CFG.text.head_size
    wide = {f'f32[{",".join(map(str, shape))}]' for shape in (q, (*q[1:], q[0]))}  # of q, k, v; of o
    single = [x for x in program.entry(text) if len(x.results) == 1]  # what moves a weight has three
    assert single
    assert not [x.line for x in single if x.results[0][0] in wide]


@pytest.mark.parametrize('T', [577, 1024])
def test_the_gradient_of_attention_is_computed_by_cudnn(h200, T, monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 92000)
    q = jax.ShapeDtypeStruct((1, T, 16, 64), jnp.bfloat16, sharding=h200)

    def total(q, k, v):
        return attend(q, k, v, causal=False, implementation='cudnn').astype(jnp.float32).sum()

    text = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, q, q).lower().compile().as_text()
    assert 'fmhaSoftmaxBackward' in text


@pytest.mark.parametrize('quantize', [None, 'int8', 'int4'])
def test_prefill(h200, quantize, monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 92000)
    B, cfg = 8, program.with_layers(CFG)
    params = load(h200, quantize, cfg)
    compiled = program.prefill(params, dataclasses.replace(cfg, attention='cudnn'), B, h200)
    assert program.bytes_in_use(compiled, params, cfg, program.state(cfg, B).cache) < MEMORY
    text = compiled.as_text()
    assert 'layers_22' in text  # the deepest tap is the output of this block
    assert 'clip/layers_23' not in text
    # Only the logits of each row's last token.
    assert f'f32[{B},{CFG.text.vocab}]' in text
    assert f'[{B},{program.PROMPT},{CFG.text.vocab}]' not in text


def test_vision(h200):
    params = load(h200)
    compiled = program.vision(params, CFG, 8, h200)
    text = compiled.as_text()
    assert program.bytes_in_use(compiled, params, CFG) < MEMORY
    assert not program.copied_weights(text, params)
    assert program.kernel_count(program.entry(text)) < 17 * max(CFG.taps) + 20
