"""Compares trees of arrays."""

from typing import Any

import jax
import numpy as np


def same(a: Any, b: Any) -> None:
    """Checks that two trees are equal, bit by bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
