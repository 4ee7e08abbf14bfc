"""Functions of the einsum equation of a product, such as 'BTD,DNH->BTNH': its axes, and related equations."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Axes(NamedTuple):
    """The letters of an equation: 'BTNH,NHD->BTD' -> BTNH, NHD, NH, D and BTD."""

    x: str
    weight: str
    contracted: str  # the weight's axes that the product sums over
    output: str  # the weight's other axes
    result: str


def axes(equation: str) -> Axes:
    """The axes of the product of an input and a weight."""
    factors, result = equation.split('->')
    x, weight = factors.split(',')
    contracted = ''.join(a for a in weight if a not in result)
    return Axes(x, weight, contracted, ''.join(a for a in weight if a in result), result)


def output_axes_first(equation: str) -> str:
    """The equation for a weight stored with its output axes first: 'BTNH,NHD->BTD' -> 'BTNH,DNH->BTD'."""
    x, _, contracted, output, result = axes(equation)
    assert result.endswith(output), f'{equation}: the output axes of a quantized weight must end the result'
    return f'{x},{output}{contracted}->{result}'


def lora_equations(equation: str) -> tuple[str, str]:
    """The equations of LoRA's two products: 'BTNH,NHD->BTD' -> 'BTNH,NHR->BTR' and 'BTR,RD->BTD'."""
    x, _, contracted, output, result = axes(equation)
    low_rank = ''.join(a for a in x if a in result) + 'R'
    return f'{x},{contracted}R->{low_rank}', f'{low_rank},R{output}->{result}'


def precision(x: Array) -> lax.Precision | None:
    """HIGHEST for float32, so that GPUs and TPUs do not round inputs to TF32 or bfloat16; None otherwise."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
