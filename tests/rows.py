"""Random batches of tokens with pictures between them."""

from collections.abc import Sequence

import numpy as np

from vipllava_jax.config import Config
from vipllava_jax.data.conversations import IGNORE
from vipllava_jax.data.examples import Examples
from vipllava_jax.inputs.batch import Batch


def ragged(cfg: Config, rng: np.random.Generator, rows: list[tuple[int, int]], T: int | None = None) -> Batch:
    """A batch of rows of (words, images), right-padded to T or the longest row; each ends with words."""
    I, B = max(images for _, images in rows), len(rows)
    size = cfg.vision.image_size
    prompts = []
    for words, images in rows:
        prompt = [cfg.bos, *rng.integers(3, cfg.image_token, words)]
        for at in sorted(rng.integers(1, words - 2, images), reverse=True):
            prompt[at:at] = [cfg.image_token] * cfg.vision.patches
        prompts.append(prompt)
    tokens = np.full((B, T or max(map(len, prompts))), cfg.pad, np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    counts = np.array([images for _, images in rows], np.int32)
    images = rng.normal(size=(B, I, size, size, 3)).astype(np.float32)
    images[np.arange(I) >= counts[:, None]] = 0
    return Batch(tokens, np.array([*map(len, prompts)], np.int32), images, counts)


def alone(batch: Batch, row: int) -> Batch:
    """The batch of a single row, without its padding."""
    n, I = batch.lengths[row], batch.image_counts[row]
    part = slice(row, row + 1)
    return Batch(
        batch.tokens[part, :n], batch.lengths[part], batch.images[part, :I], batch.image_counts[part]
    )


def examples(batch: Batch, cfg: Config, first: int = 2) -> Examples:
    """The batch with targets: each word that follows the token at position `first` or a later one."""
    following = np.roll(batch.tokens, -1, axis=1)
    nth = np.arange(batch.tokens.shape[1])
    learnt = (nth >= first) & (nth < batch.lengths[:, None] - 1) & (following != cfg.image_token)
    return Examples(batch.tokens, np.where(learnt, following, IGNORE), batch.images, batch.image_counts)


def stack(batches: Sequence[Examples]) -> Examples:
    """Stacks batches along a leading axis, padded to the most tokens and images of a row."""
    T, I = (max(getattr(batch, name).shape[1] for batch in batches) for name in ('tokens', 'images'))

    def joined(name: str, size: int, fill: int) -> np.ndarray:
        arrays = [getattr(batch, name) for batch in batches]
        rest = [(0, 0)] * (arrays[0].ndim - 2)
        return np.stack(
            [np.pad(x, [(0, 0), (0, size - x.shape[1]), *rest], constant_values=fill) for x in arrays]
        )

    counts = np.stack([batch.image_counts for batch in batches])
    return Examples(joined('tokens', T, 0), joined('targets', T, IGNORE), joined('images', I, 0), counts)
