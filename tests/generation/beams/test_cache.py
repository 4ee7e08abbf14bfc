"""The cache of beams is reordered in place, from the first slot on in which beams differ."""

import jax
import jax.numpy as jnp
import numpy as np

from vipllava_jax.generation.beams.cache import divergence_after, divergence_at_start, reorder
from vipllava_jax.model.llama import Cache


def test_each_beam_keeps_its_own_slots(rng):
    """Each slot holds its own number; the beams of two rows of 50 and 100 slots grow over several windows."""
    B, W, S = 2, 3, 192
    first = np.array([50, 100])
    expected = np.tile(np.arange(S, dtype=np.float32), (B, W, 1))
    cache = Cache(*((jnp.asarray(expected.reshape(B * W, S, 1, 1) * sign),) for sign in (1, -1)))
    divergence = divergence_at_start(jnp.asarray(first), W)
    moved, after = jax.jit(reorder), jax.jit(divergence_after)
    for step in range(90):
        filled = first + step
        parents = rng.integers(0, W, (B, W)) if rng.random() < 0.5 else np.tile(np.arange(W), (B, 1))
        cache = moved(cache, divergence, parents, filled)
        divergence = after(divergence, parents, filled)
        expected = np.take_along_axis(expected, parents[:, :, None], axis=1)
        k = np.array(cache.k[0]).reshape(B, W, S)
        for row, n in enumerate(filled):
            np.testing.assert_array_equal(k[row, :, :n], expected[row, :, :n])
            k[row, :, n] = expected[row, :, n] = 1000 + step * W + np.arange(W)  # what decoding writes
        x = jnp.asarray(k.reshape(B * W, S, 1, 1))
        cache = Cache((x,), (-x,))
