"""Rotary embeddings, tested separately."""

import jax.numpy as jnp
import pytest

from vipllava_jax.model.layers import rope


def test_rotated_products_depend_only_on_the_distance(rng):
    x, y = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in 'xy')

    def product(i, j):
        return float(jnp.sum(rope(x, jnp.array([[i]]), 10000.0) * rope(y, jnp.array([[j]]), 10000.0)))

    assert product(3, 8) == pytest.approx(product(103, 108), abs=1e-4)
    assert product(3, 8) != pytest.approx(product(3, 9), abs=1e-4)
