"""Quantised weights as near as a byte allows, adapters, and products that read them as plain weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vipllava_jax as vj
from vipllava_jax.arrays import flat, nested
from vipllava_jax.checkpoint import quantized
from vipllava_jax.model import llama
from vipllava_jax.model.vipllava import abstract
from vipllava_jax.model.weights import LONG, LoRA, Quantized, _sum, einsum, quantize, rearrange

EQUATIONS = {'BTD,DNH->BTNH': 1, 'BTNH,NHD->BTD': 2, 'BTD,DXKH->BTXKH': 1, 'BTF,FD->BTD': 1, 'BTD,DV->BTV': 1}
forward = jax.jit(vj.forward, static_argnames='cfg')
SIZES = dict(B=2, T=3, D=12, N=4, K=2, H=5, X=4, F=7, V=9)


@given(st.sampled_from([*EQUATIONS]), st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_a_product_reads_a_quantised_weight_as_the_weight_it_stands_for(equation, seed, scale):
    rng = np.random.default_rng(seed)
    (a, b), out = equation.split('->')[0].split(','), equation.split('->')[1]
    x, w = (jnp.float32(rng.standard_normal([SIZES[c] for c in letters])) for letters in (a, b))
    w *= scale
    packed = quantize(w, EQUATIONS[equation])
    assert packed.shape == w.shape
    assert packed.values.dtype == jnp.int8
    summed = tuple(range(EQUATIONS[equation]))
    step = jnp.max(jnp.abs(w), axis=summed) / 127
    assert jnp.all(jnp.abs(packed.astype(jnp.float32) - w) <= step * 0.5001)
    y = einsum(equation, x, packed)
    assert y.shape == tuple(SIZES[c] for c in out)
    np.testing.assert_allclose(
        y, einsum(equation, x, packed.astype(jnp.float32)), rtol=1e-4, atol=scale * 1e-5
    )


@pytest.mark.parametrize(
    ('equation', 'x', 'w'),
    [
        ('BTD,DXKH->BTXKH', (1, 1, 24), (24, 3, 2, 8)),
        ('BTNH,NHD->BTD', (1, 1, 4, 8), (4, 8, 24)),
        ('BTF,FD->BTD', (1, 1, LONG + 4), (LONG + 4, 24)),
        ('BTF,FD->BTD', (1, 1, LONG + 3), (LONG + 3, 24)),
    ],
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_a_single_row_is_summed_to_what_its_dot_gives(equation, x, w, dtype, rng):
    """The form that a GPU takes, here too."""
    packed = quantize(jnp.float32(rng.standard_normal(w)), 2 if 'NHD' in equation else 1)
    row = jnp.asarray(rng.standard_normal(x), dtype)
    y, wanted = _sum(jnp.dtype(dtype), row, packed), einsum(equation, row, packed)
    assert (y.shape, y.dtype) == (wanted.shape, wanted.dtype)
    step = {'float32': 1e-5, 'bfloat16': 1e-2, 'float16': 2e-3}[dtype]
    np.testing.assert_allclose(*map(jnp.float32, (y, wanted)), atol=step * float(jnp.abs(wanted).max()))


def test_large_activations_do_not_overflow_float16(rng):
    w = jnp.float16(rng.standard_normal((4096, 8)) * 0.02)
    x = jnp.float16(rng.standard_normal((1, 1, 4096))).at[..., 7].set(2000)
    y = einsum('BTD,DV->BTV', x, quantize(w, 1))
    np.testing.assert_allclose(y, einsum('BTD,DV->BTV', x, w), atol=1)


def test_kept_axes_must_end_the_result():
    with pytest.raises(AssertionError, match='must end'):
        einsum('BTD,DV->VBT', jnp.ones((1, 1, 3)), quantize(jnp.ones((3, 2)), 1))


def test_a_channel_of_zeros_stays_zero():
    w = jnp.ones((3, 2)).at[:, 1].set(0)
    np.testing.assert_array_equal(quantize(w, 1).astype(jnp.float32), w)


def test_what_moves_kept_axes_moves_them_in_quantised_weights_too(rng):
    a, b = (jnp.float32(rng.standard_normal((6, 2, 3))) for _ in 'ab')

    def stack(*ws):
        return jnp.stack(ws, axis=1)

    packed = rearrange(stack, quantize(a, 1), quantize(b, 1))
    plain = quantize(stack(a, b), 1)
    np.testing.assert_array_equal(packed.values, plain.values)
    np.testing.assert_array_equal(packed.scale, plain.scale)


@pytest.mark.parametrize('fuse', [False, True])
def test_answers_stay_close(cfg, params, rng, fuse):
    small = nested(quantized(flat(params), 'int8'))
    dense = nested((path, jnp.asarray(w.astype(jnp.float32))) for path, w in flat(small))
    if fuse:
        for name in [name for name in small['llama'] if name.startswith('layers_')]:
            small['llama'][name] = llama.fuse(small['llama'][name])
    tokens = rng.integers(3, cfg.image_token, (2, 9))
    packed = forward(small, tokens, cfg=cfg)
    np.testing.assert_allclose(packed, forward(dense, tokens, cfg=cfg), atol=1e-4)  # the same weights
    exact = forward(params, tokens, cfg=cfg)
    assert 0 < jnp.linalg.norm(packed - exact) < 0.02 * jnp.linalg.norm(exact)


def test_the_large_weights_of_the_decoder_are_quantised_and_no_others(cfg):
    shapes = dict(quantized(flat(abstract(cfg)), 'int8'))
    names = {path.split('/')[-2] for path, leaf in shapes.items() if isinstance(leaf, Quantized)}
    assert names == {'q', 'k', 'v', 'o', 'gate', 'up', 'down', 'head'}
    assert all(path.startswith('llama/') for path, leaf in shapes.items() if isinstance(leaf, Quantized))
    assert {path: leaf.shape for path, leaf in shapes.items()} == {p: x.shape for p, x in flat(abstract(cfg))}


PRODUCTS = {**EQUATIONS, 'BTD,DKH->BTKH': 1, 'BTD,DF->BTF': 1, 'BPNH,NHD->BPD': 2, 'BPD,DNH->BPNH': 1}


def adapted(equation: str, rng, scale: float = 2.0, rank: int = 3) -> tuple[jax.Array, LoRA]:
    """An input, and a weight of the equation with an adapter that is not zero."""
    (x, w) = equation.split('->')[0].split(',')
    summed = PRODUCTS[equation]
    sizes = [{**SIZES, 'P': 5}[letter] for letter in w]
    a, b = [*sizes[:summed], rank], [rank, *sizes[summed:]]
    base, a, b = (jnp.float32(rng.standard_normal(shape)) for shape in (sizes, a, b))
    return jnp.float32(rng.standard_normal([{**SIZES, 'P': 5}[letter] for letter in x])), LoRA(
        base, a, b, scale
    )


@pytest.mark.parametrize('equation', PRODUCTS)
def test_a_product_reads_an_adapter_as_the_weight_it_is_merged_into(equation, rng):
    x, w = adapted(equation, rng)
    merged = w.astype(jnp.float32)
    assert merged.shape == w.shape == w.base.shape
    assert (w.size, w.dtype) == (w.base.size, w.base.dtype)
    expected = jnp.einsum(equation, x, w.base) + 2 * jnp.einsum(
        equation, x, jnp.tensordot(w.a, w.b, 1)
    )  # nothing of `LoRA` in it
    np.testing.assert_allclose(einsum(equation, x, merged), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(einsum(equation, x, w), expected, rtol=1e-4, atol=1e-4)
    assert jnp.abs(expected - einsum(equation, x, w.base)).max() > 1


@pytest.mark.parametrize('equation', EQUATIONS)
def test_an_adapter_stands_beside_a_quantised_weight(equation, rng):
    x, w = adapted(equation, rng)
    packed = w.replace(base=quantize(w.base, EQUATIONS[equation]))
    assert (packed.shape, packed.dtype) == (w.shape, jnp.int8)
    y, exact = einsum(equation, x, packed), einsum(equation, x, w)
    np.testing.assert_allclose(y, einsum(equation, x, packed.astype(jnp.float32)), rtol=1e-4, atol=1e-4)
    assert 0 < jnp.linalg.norm(y - exact) < 0.01 * jnp.linalg.norm(exact)


def test_an_adapter_is_read_in_the_type_of_the_input(rng):
    x, w = adapted('BTF,FD->BTD', rng)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), w)
    mixed = w.replace(base=half.base)  # as trained: the pair in float32
    y = einsum('BTF,FD->BTD', x.astype(jnp.bfloat16), mixed)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, einsum('BTF,FD->BTD', x.astype(jnp.bfloat16), half))
    assert einsum('BTF,FD->BTD', x.astype(jnp.bfloat16), mixed, jnp.float32).dtype == jnp.float32


def test_dropout_is_of_the_adapters_input_and_keeps_its_mean(rng):
    x, w = adapted('BTF,FD->BTD', rng)
    base = einsum('BTF,FD->BTD', x, w.base)
    plain = einsum('BTF,FD->BTD', x, w) - base
    np.testing.assert_array_equal(einsum('BTF,FD->BTD', x, w.replace(rate=0.4)) - base, plain)  # no key, none
    draw = jax.jit(lambda key: einsum('BTF,FD->BTD', x, w.replace(rate=0.4, key=key)) - base)
    drawn = jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000))
    assert jnp.all(jnp.abs(drawn.mean(0) - plain) < 5 * drawn.std(0) / len(drawn) ** 0.5)
    assert jnp.abs(drawn[0] - plain).max() > 1
    gone = einsum('BTF,FD->BTD', x, w.replace(rate=1 - 1e-7, key=jax.random.key(1))) - base
    np.testing.assert_array_equal(gone, jnp.zeros_like(plain))


def test_a_layer_with_an_adapter_is_not_fused(params, rng):
    layer = dict(params['llama']['layers_0'])
    w = layer['k']['w']
    layer['k'] = {'w': LoRA(w, jnp.zeros((w.shape[0], 2)), jnp.zeros((2, *w.shape[1:])), 1.0)}
    assert llama.fuse(layer) is layer
    assert 'qkv' in llama.fuse(params['llama']['layers_0'])
