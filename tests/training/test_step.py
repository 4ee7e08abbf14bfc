"""A step of training: what it moves, what it leaves alone, and that only the sum of its batches matters."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.rows import ragged
from vipllava_jax.training.loss import IGNORE, Examples
from vipllava_jax.training.optimizer import Optimizer
from vipllava_jax.training.parts import split
from vipllava_jax.training.step import make_step, stack, start

ROWS = [(9, 2), (6, 0), (15, 1), (7, 3)]


def examples(cfg, rng, rows=ROWS, T=None) -> Examples:
    batch = ragged(cfg, rng, rows, T)
    nth = np.arange(batch.tokens.shape[1])
    following = np.roll(batch.tokens, -1, axis=1)
    learnt = (nth < batch.lengths[:, None] - 1) & (following != cfg.image_token) & (nth > 2)
    return Examples(batch.tokens, np.where(learnt, following, IGNORE), batch.images, batch.image_counts)


def test_runs(params, cfg, rng):
    trainable, frozen = split(params, {'projector', 'llama'})
    o = Optimizer(1e-2, 10)
    state = start(trainable, o)
    step = make_step(cfg, o, dtype=jnp.float32)
    b = stack([examples(cfg, rng)])
    for _ in range(10):
        state, metrics = step(state, frozen, b, jax.random.key(0))
        print([float(m) for m in metrics])
    assert metrics.loss < 4
