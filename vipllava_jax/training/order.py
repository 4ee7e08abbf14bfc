"""The order in which an epoch takes its rows."""

import hashlib

import numpy as np

from vipllava_jax.training.rows import Rows

POOL = 50  # batches whose rows are drawn together and then sorted by length


def shuffled(rows: Rows, batch_size: int, by_length: bool, seed: int, epoch: int) -> np.ndarray:
    """Indices of all rows, batch after batch, in an order of the epoch's own; what fills no batch is last.

    By length, the rows of a batch have as many pictures each and about as much text.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(rows))
    if not by_length:
        return order
    whole = len(rows) // batch_size * batch_size
    size = POOL * batch_size
    for start in range(0, whole, size):
        pool = order[start : min(start + size, whole)]
        pool[:] = pool[np.lexsort((rows.letters[pool], rows.images[pool]))]
    batches = order[:whole].reshape(-1, batch_size)
    return np.concatenate([rng.permutation(batches).reshape(-1), order[whole:]])


def sample_seed(seed: int, epoch: int, name: str) -> int:
    """The seed of what varies in a row: another one in each epoch, and for each name."""
    text = f'{seed} {epoch} {name}'.encode('utf-8', 'surrogatepass')
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'little')
