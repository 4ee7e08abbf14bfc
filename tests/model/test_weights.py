"""A product with an adapted weight equals the product with the merged weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vipllava_jax.model import fused
from vipllava_jax.model.quantized import quantize
from vipllava_jax.model.weights import LoRA, dropout, einsum

EQUATIONS = {'BTD,DNH->BTNH': 1, 'BTNH,NHD->BTD': 2, 'BTD,DXKH->BTXKH': 1, 'BTF,FD->BTD': 1, 'BTD,DV->BTV': 1}
SIZES = dict(B=2, T=3, D=24, N=4, K=2, H=8, X=4, F=16, V=9)
PRODUCTS = {**EQUATIONS, 'BTD,DKH->BTKH': 1, 'BTD,DF->BTF': 1, 'BPNH,NHD->BPD': 2, 'BPD,DNH->BPNH': 1}


def adapted(equation: str, rng, scale: float = 2.0, rank: int = 3) -> tuple[jax.Array, LoRA]:
    """An input, and a weight for the equation with a nonzero adapter."""
    (x, w) = equation.split('->')[0].split(',')
    contracted = PRODUCTS[equation]
    sizes = [{**SIZES, 'P': 5}[letter] for letter in w]
    a, b = [*sizes[:contracted], rank], [rank, *sizes[contracted:]]
    base, a, b = (jnp.float32(rng.standard_normal(shape)) for shape in (sizes, a, b))
    return jnp.float32(rng.standard_normal([{**SIZES, 'P': 5}[letter] for letter in x])), LoRA(
        base, a, b, scale
    )


@pytest.mark.parametrize('equation', PRODUCTS)
def test_a_product_with_an_adapter_equals_that_with_the_merged_weight(equation, rng):
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
@pytest.mark.parametrize(('int_dtype', 'tolerance'), [('int8', 0.01), ('int4', 0.15)])
def test_a_quantized_weight_can_have_an_adapter(int_dtype, tolerance, equation, rng):
    x, w = adapted(equation, rng)
    packed = w.replace(base=quantize(w.base, EQUATIONS[equation], int_dtype))
    assert (packed.shape, packed.dtype) == (w.shape, int_dtype)
    y, exact = einsum(equation, x, packed), einsum(equation, x, w)
    np.testing.assert_allclose(y, einsum(equation, x, packed.astype(jnp.float32)), rtol=1e-4, atol=1e-4)
    assert 0 < jnp.linalg.norm(y - exact) < tolerance * jnp.linalg.norm(exact)


def test_an_adapter_is_cast_to_the_dtype_of_the_input(rng):
    x, w = adapted('BTF,FD->BTD', rng)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), w)
    mixed = w.replace(base=half.base)  # as in training, with the pair in float32
    y = einsum('BTF,FD->BTD', x.astype(jnp.bfloat16), mixed)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, einsum('BTF,FD->BTD', x.astype(jnp.bfloat16), half))
    assert einsum('BTF,FD->BTD', x.astype(jnp.bfloat16), mixed, jnp.float32).dtype == jnp.float32


def test_dropout_applies_to_the_input_of_the_adapter_and_keeps_the_mean(rng):
    x, w = adapted('BTF,FD->BTD', rng)
    base = einsum('BTF,FD->BTD', x, w.base)
    plain = einsum('BTF,FD->BTD', x, w) - base
    np.testing.assert_array_equal(einsum('BTF,FD->BTD', x, w.replace(rate=0.4)) - base, plain)  # no key
    draw = jax.jit(lambda key: einsum('BTF,FD->BTD', x, w.replace(rate=0.4, key=key)) - base)
    drawn = jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000))
    assert jnp.all(jnp.abs(drawn.mean(0) - plain) < 5 * drawn.std(0) / len(drawn) ** 0.5)
    assert jnp.abs(drawn[0] - plain).max() > 1


@pytest.mark.parametrize(
    ('rate', 'dropped'), [(0.05, 13), (0.5, 128), (0.9, 230), (1e-6, 1), (1 - 1e-6, 255)], ids=str
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_dropout_drops_values_independently_at_its_rate(rate, dropped, dtype):
    x = jnp.full((301, 11, 31), 2, dtype)  # no multiple of four
    y = dropout(x, rate, jax.random.key(3))
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    kept = np.asarray(y, np.float64) != 0
    part = 1 - dropped / 256
    np.testing.assert_allclose(
        np.asarray(y, np.float64)[kept], 2 / part, rtol=2**-8 if y.itemsize == 2 else 1e-6
    )
    deviation = (part * (1 - part)) ** 0.5
    assert abs(kept.mean() - part) < 5 * deviation / x.size**0.5
    flat = kept.reshape(-1) - part
    for n in (1, 2, 3, 4, 31):  # distances within a hash, to the next hash, and to the next row
        assert abs((flat[:-n] * flat[n:]).mean()) < 5 * deviation**2 / x.size**0.5
    assert not np.array_equal(y, dropout(x, rate, jax.random.key(4)))


def test_dropout_uses_one_random_word_for_four_values():
    program = str(jax.make_jaxpr(lambda x: dropout(x, 0.5, jax.random.key(0)))(jnp.ones((9, 31))))
    assert 'shape=(70,)' in program


def test_a_layer_with_an_adapter_is_not_fused(params, rng):
    layer = dict(params['llama']['layers_0'])
    w = layer['k']['w']
    layer['k'] = {'w': LoRA(w, jnp.zeros((w.shape[0], 2)), jnp.zeros((2, *w.shape[1:])), 1.0)}
    assert fused.fuse(layer) is layer
    assert 'qkv' in fused.fuse(params['llama']['layers_0'])
