"""Functions of the einsum equation of a product, such as 'BTD,DNH->BTNH': its axes, related equations."""

import jax.numpy as jnp
from jax import Array, lax


def axes(equation: str) -> tuple[str, str, str, str]:
    """An equation -> the axes of x, the weight's output axes, its contracted axes, the axes of the result."""
    factors, out = equation.split('->')
    x, w = factors.split(',')
    return x, ''.join(a for a in w if a in out), ''.join(a for a in w if a not in out), out


def turned(equation: str) -> str:
    """The equation for a weight stored with its output axes first: 'BTNH,NHD->BTD' -> 'BTNH,DNH->BTD'."""
    x, kept, summed, out = axes(equation)
    assert out.endswith(kept), f'{equation}: the axes that a quantised weight keeps must end the result'
    return f'{x},{kept}{summed}->{out}'


def halves(equation: str) -> tuple[str, str]:
    """The equations of LoRA's two products: 'BTNH,NHD->BTD' -> 'BTNH,NHR->BTR' and 'BTR,RD->BTD'."""
    x, kept, summed, out = axes(equation)
    between = ''.join(a for a in x if a in out) + 'R'
    return f'{x},{summed}R->{between}', f'{between},R{kept}->{out}'


def precision(x: Array) -> lax.Precision | None:
    """HIGHEST for float32, so that GPUs and TPUs do not round inputs to TF32 or bfloat16; None otherwise."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
