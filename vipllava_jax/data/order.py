"""The order of the rows in an epoch."""

import hashlib

import numpy as np

from vipllava_jax.data.rows import Rows

POOL_BATCHES = 50  # batches whose rows are drawn together and then sorted by length


def epoch_order(rows: Rows, batch_size: int, by_length: bool, seed: int, epoch: int) -> np.ndarray:
    """Indices of all rows, batch after batch, in the order of an epoch; an incomplete batch is last.

    With `by_length`, the rows of a batch have the same number of pictures and similar lengths of text.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(rows))
    if not by_length:
        return order
    in_full_batches = len(rows) // batch_size * batch_size
    size = POOL_BATCHES * batch_size
    for start in range(0, in_full_batches, size):
        pool = order[start : min(start + size, in_full_batches)]
        pool[:] = pool[np.lexsort((rows.text_lengths[pool], rows.image_counts[pool]))]
    batches = order[:in_full_batches].reshape(-1, batch_size)
    return np.concatenate([rng.permutation(batches).reshape(-1), order[in_full_batches:]])


def sample_seed(seed: int, epoch: int, name: str) -> int:
    """The seed of the random choices for a row, different for each epoch and name."""
    text = f'{seed} {epoch} {name}'.encode('utf-8', 'surrogatepass')
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'little')
