"""What an equation of a product says about its axes: 'BTD,DNH->BTNH'."""

import jax.numpy as jnp
from jax import Array, lax


def axes(equation: str) -> tuple[str, str, str, str]:
    """The axes of x, those that the weight keeps and those it sums over, and the result's."""
    factors, out = equation.split('->')
    x, w = factors.split(',')
    return x, ''.join(a for a in w if a in out), ''.join(a for a in w if a not in out), out


def turned(equation: str) -> str:
    """The equation for a weight whose kept axes come first: 'BTNH,NHD->BTD' -> 'BTNH,DNH->BTD'."""
    x, kept, summed, out = axes(equation)
    assert out.endswith(kept), f'{equation}: the axes that a quantised weight keeps must end the result'
    return f'{x},{kept}{summed}->{out}'


def halves(equation: str) -> tuple[str, str]:
    """The equations of an adapter's two products: 'BTNH,NHD->BTD' -> 'BTNH,NHR->BTR', 'BTR,RD->BTD'."""
    x, kept, summed, out = axes(equation)
    between = ''.join(a for a in x if a in out) + 'R'
    return f'{x},{summed}R->{between}', f'{between},R{kept}->{out}'


def precision(x: Array) -> lax.Precision | None:
    """The word without which a product of float32 would not stay float32."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
