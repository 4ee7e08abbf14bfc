"""int8 and int4 weights are as accurate as their types allow, and products use them like plain weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vipllava_jax as vj
from vipllava_jax.arrays import flat, nested
from vipllava_jax.model import fused
from vipllava_jax.model.params import abstract
from vipllava_jax.model.products import MAX_CHANNELS_IN_ONE_SUM, MAX_INPUTS_AS_BYTES, _product_by_sum
from vipllava_jax.model.quantized import GROUP, Int4, Int8, Quantized, quantize
from vipllava_jax.model.weights import einsum, map_output_axes
from vipllava_jax.quantizing import quantize_leaves

EQUATIONS = {'BTD,DNH->BTNH': 1, 'BTNH,NHD->BTD': 2, 'BTD,DXKH->BTXKH': 1, 'BTF,FD->BTD': 1, 'BTD,DV->BTV': 1}
forward = jax.jit(vj.forward, static_argnames='cfg')
SIZES = dict(B=2, T=3, D=24, N=4, K=2, H=8, X=4, F=16, V=9)
TYPES = {'int8': Int8, 'int4': Int4}


@given(st.sampled_from([*EQUATIONS]), st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize('int_dtype', TYPES)
def test_a_product_with_a_quantized_weight_equals_that_with_the_dequantized_one(
    int_dtype, equation, seed, scale
):
    rng = np.random.default_rng(seed)
    (a, b), out = equation.split('->')[0].split(','), equation.split('->')[1]
    x, w = (jnp.float32(rng.standard_normal([SIZES[c] for c in letters])) for letters in (a, b))
    w *= scale
    packed = quantize(w, EQUATIONS[equation], int_dtype)
    assert type(packed) is TYPES[int_dtype]
    assert (packed.shape, packed.size, packed.dtype) == (w.shape, w.size, int_dtype)
    assert jnp.all(jnp.abs(packed.astype(jnp.float32) - w) <= allowed(w, EQUATIONS[equation], int_dtype))
    y = einsum(equation, x, packed)
    assert y.shape == tuple(SIZES[c] for c in out)
    np.testing.assert_allclose(
        y, einsum(equation, x, packed.astype(jnp.float32)), rtol=1e-4, atol=scale * 1e-5
    )


def allowed(w: jax.Array, contracted: int, int_dtype: str) -> jax.Array:
    """The largest error of each value: half a step, or a whole step at the end of the range."""
    if int_dtype == 'int8':
        return jnp.max(jnp.abs(w), axis=tuple(range(contracted))) / 127 * 0.5001
    inputs = w.reshape(-1, *w.shape[contracted:])
    groups = inputs.reshape(-1, math.gcd(GROUP, len(inputs)), *w.shape[contracted:])
    step = jnp.max(jnp.abs(groups), axis=1, keepdims=True) / 8
    steps = jnp.where(jnp.abs(groups) > 7.4 * step, 1.05, 0.55)  # a scale has eight bits
    return (step * steps).reshape(w.shape)


@pytest.mark.parametrize(
    ('equation', 'x', 'w'),
    [
        ('BTD,DXKH->BTXKH', (1, 1, 24), (24, 3, 2, 8)),
        ('BTNH,NHD->BTD', (1, 1, 4, 8), (4, 8, 24)),
        ('BTF,FD->BTD', (1, 1, 2 * GROUP), (2 * GROUP, 24)),
        ('BTF,FD->BTD', (1, 1, MAX_INPUTS_AS_BYTES + 8), (MAX_INPUTS_AS_BYTES + 8, 24)),
        ('BTF,FD->BTD', (1, 1, MAX_INPUTS_AS_BYTES + 3), (MAX_INPUTS_AS_BYTES + 3, 24)),
        ('BTD,DV->BTV', (1, 1, 16), (16, MAX_CHANNELS_IN_ONE_SUM + 2)),
        ('BTD,DV->BTV', (1, 1, 16), (16, MAX_CHANNELS_IN_ONE_SUM + 1)),
        ('BTNH,NHD->BTD', (3, 1, 4, 8), (4, 8, 24)),
        ('BTD,DV->BTV', (2, 2, 2 * GROUP), (2 * GROUP, MAX_CHANNELS_IN_ONE_SUM + 2)),
    ],
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', pytest.param('float16', marks=pytest.mark.slow)])
@pytest.mark.parametrize('int_dtype', TYPES)
def test_the_sum_for_a_few_rows_equals_the_matrix_multiplication(int_dtype, equation, x, w, dtype, rng):
    """The form of the product that GPUs use, also tested on a CPU."""
    packed = quantize(jnp.float32(rng.standard_normal(w)), 2 if 'NHD' in equation else 1, int_dtype)
    x = jnp.asarray(rng.standard_normal(x), dtype)
    y, expected = _product_by_sum(jnp.dtype(dtype), x, packed), einsum(equation, x, packed)
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    step = {'float32': 1e-5, 'bfloat16': 1e-2, 'float16': 2e-3}[dtype]
    np.testing.assert_allclose(*map(jnp.float32, (y, expected)), atol=step * float(jnp.abs(expected).max()))


def test_large_activations_do_not_overflow_float16(rng):
    w = jnp.float16(rng.standard_normal((4096, 8)) * 0.02)
    x = jnp.float16(rng.standard_normal((1, 1, 4096))).at[..., 7].set(2000)
    y = einsum('BTD,DV->BTV', x, quantize(w, 1))
    np.testing.assert_allclose(y, einsum('BTD,DV->BTV', x, w), atol=1)


def test_a_word_holds_eight_values_and_each_group_has_a_scale():
    values = jnp.arange(-8, 8, dtype=jnp.float32)
    w = jnp.concatenate([jnp.tile(values, GROUP // 16), jnp.tile(-4 * values, GROUP // 16)])[:, None]
    packed = quantize(w, 1, 'int4')
    np.testing.assert_array_equal(packed.scale, [[1, -4]])
    assert [int(word) & 0xFFFFFFFF for word in packed.values[0, :2]] == [0xFEDCBA98, 0x76543210]
    np.testing.assert_array_equal(packed.astype(jnp.float32), w)


def test_inputs_that_are_no_multiple_of_eight_become_int8(rng):
    assert type(quantize(jnp.float32(rng.standard_normal((4, 5, 24))), 2, 'int4')) is Int8


def test_output_axes_must_end_the_result():
    with pytest.raises(AssertionError, match='must end'):
        einsum('BTD,DV->VBT', jnp.ones((1, 1, 3)), quantize(jnp.ones((3, 2)), 1))


@pytest.mark.parametrize('int_dtype', TYPES)
def test_the_product_of_no_rows_has_no_rows(int_dtype):
    w = quantize(jnp.ones((256, 64)), 1, int_dtype)
    product = jax.jit(lambda x: einsum('BTF,FD->BTD', x, w))
    assert product(jnp.zeros((0, 1, 256))).shape == (0, 1, 64)


@pytest.mark.parametrize('int_dtype', TYPES)
def test_a_channel_of_zeros_stays_zero(int_dtype):
    w = jnp.ones((8, 2)).at[:, 1].set(0)
    np.testing.assert_array_equal(quantize(w, 1, int_dtype).astype(jnp.float32), w)


@pytest.mark.parametrize('int_dtype', TYPES)
def test_output_axes_of_quantized_weights_can_be_rearranged(int_dtype, rng):
    a, b = (jnp.float32(rng.standard_normal((16, 2, 3))) for _ in 'ab')

    def stack(*ws):
        return jnp.stack(ws, axis=1)

    packed = map_output_axes(stack, quantize(a, 1, int_dtype), quantize(b, 1, int_dtype))
    plain = quantize(stack(a, b), 1, int_dtype)
    assert type(packed) is type(plain) is TYPES[int_dtype]
    np.testing.assert_array_equal(packed.values, plain.values)
    np.testing.assert_array_equal(packed.scale, plain.scale)


@pytest.mark.slow
@pytest.mark.parametrize('fuse', [False, True])
@pytest.mark.parametrize(('int_dtype', 'tolerance'), [('int8', 0.02), ('int4', 0.3)])
def test_logits_of_quantized_weights_stay_close(cfg, rng, int_dtype, tolerance, fuse):
    params = vj.init(jax.random.key(0), cfg)
    small = nested(quantize_leaves(flat(params), int_dtype))
    dense = nested((path, jnp.asarray(w.astype(jnp.float32))) for path, w in flat(small))
    if fuse:
        for name in [name for name in small['llama'] if name.startswith('layers_')]:
            small['llama'][name] = fused.fuse(small['llama'][name])
    tokens = rng.integers(3, cfg.image_token, (2, 9))
    packed = forward(small, tokens, cfg=cfg)
    np.testing.assert_allclose(packed, forward(dense, tokens, cfg=cfg), atol=1e-4)  # the same weights
    exact = forward(params, tokens, cfg=cfg)
    assert 0 < jnp.linalg.norm(packed - exact) < tolerance * jnp.linalg.norm(exact)


@pytest.mark.parametrize('int_dtype', TYPES)
def test_only_the_large_weights_of_the_decoder_are_quantized(int_dtype, cfg):
    shapes = dict(quantize_leaves(flat(abstract(cfg)), int_dtype))
    names = {path.split('/')[-2] for path, leaf in shapes.items() if isinstance(leaf, Quantized)}
    assert names == {'q', 'k', 'v', 'o', 'gate', 'up', 'down', 'head'}
    assert all(path.startswith('llama/') for path, leaf in shapes.items() if isinstance(leaf, Quantized))
    assert {path: leaf.shape for path, leaf in shapes.items()} == {p: x.shape for p, x in flat(abstract(cfg))}
