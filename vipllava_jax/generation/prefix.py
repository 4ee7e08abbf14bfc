"""The beginning of prompts, computed once for all rows that start with it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from vipllava_jax.config import Config
from vipllava_jax.inputs.batch import Batch, bucket, describe_array
from vipllava_jax.inputs.padding import pad_ids, round_up
from vipllava_jax.model import vipllava
from vipllava_jax.model.llama import PrefixCache
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of, pin

SUFFIX_STEP = 32  # what follows a prefix is short, so it is padded less than by `bucket`


@struct.dataclass
class SharedStart:
    """What the programs need of A beginnings of prompts, each shared by B / A consecutive rows."""

    ids: Array  # AS int32, padded
    cache: PrefixCache

    def rows(self, slots: int, pad: int, B: int) -> tuple[Array, Array]:
        """The ids of B rows with `slots` free slots after them, and the numbers B of shared ids."""
        padded = jnp.pad(self.ids, ((0, 0), (0, slots)), constant_values=pad)
        return jnp.repeat(padded, B // len(self.ids), axis=0), self.cache.of_rows(B)


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first ids of prompts, the images among them, and their keys and values on the device."""

    ids: np.ndarray  # P int32, with a placeholder for each feature of an image
    images: np.ndarray  # Ihw3 float32
    start: SharedStart  # of this prefix alone

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f'Prefix(ids={describe_array(self.ids)}, images={describe_array(self.images)})'

    def remainder(self, batch: Batch, pad: int) -> Batch:
        """What follows the prefix in each row; ValueError, naming the row, if one begins otherwise."""
        P, I = len(self), len(self.images)
        for row, (ids, n, images) in enumerate(zip(batch.tokens, batch.lengths, batch.images, strict=True)):
            if n <= P or not np.array_equal(ids[:P], self.ids):
                different = ids[: min(n, P)] != self.ids[: min(n, P)]
                at = int(different.argmax()) if different.any() else int(n)
                raise ValueError(
                    f'row {row} does not begin with the {P} ids of the prefix, followed by another: it '
                    f'differs from id {at} on'
                )
            if batch.image_counts[row] < I or not np.array_equal(images[:I], self.images):
                raise ValueError(
                    f'row {row} has other images than the prefix: give it the same pictures, marks and fit'
                )
        rest = [ids[P:n] for ids, n in zip(batch.tokens, batch.lengths, strict=True)]
        lengths = batch.lengths - P
        tokens = pad_ids(rest, round_up(int(lengths.max()), SUFFIX_STEP), pad)
        return Batch(tokens, lengths, batch.images[:, I:], batch.image_counts - I)


def compute_prefix(params: Params, ids: np.ndarray, images: np.ndarray, *, cfg: Config) -> Prefix:
    """Runs the model over the first ids P of prompts, and the images Ihw3 among them."""
    tokens = pad_ids([ids], bucket(len(ids)), cfg.pad)
    lengths = jnp.array([len(ids)], jnp.int32)
    counts = np.array([len(images)], np.int32)
    batch = Batch(tokens, np.array([len(ids)], np.int32), images[None], counts)
    cache = prefill_prefix(params, batch, lengths, cfg=cfg)
    return Prefix(np.asarray(ids, np.int32), images, SharedStart(jnp.asarray(tokens), cache))


@partial(jax.jit, static_argnames='cfg')
def prefill_prefix(params: Params, batch: Batch, lengths: Array, *, cfg: Config) -> PrefixCache:
    """The keys and values of the rows of a batch, as prefixes of other rows."""
    _, cache = vipllava.prefill(
        params,
        batch.tokens,
        batch.images,
        lengths=lengths,
        slots=batch.tokens.shape[1],
        cfg=cfg,
        image_counts=batch.image_counts,
    )
    return pin_prefix(PrefixCache(cache.k, cache.v, lengths), mesh_of(params))


def map_prefix(f: Callable[[Any, str], Any], prefix: PrefixCache | None) -> Any:
    """Applies f to each leaf of a prefix and its letters; a prefix is divided like the rows that share it."""
    return jax.tree.map(lambda x: f(x, 'BSKH' if x.ndim == 4 else 'B'), prefix)


def pin_prefix(prefix: PrefixCache | None, mesh: Any) -> Any:
    """The prefix with the shardings of its letters (under jit), which all programs that take it expect."""
    return map_prefix(partial(pin, mesh=mesh), prefix)
