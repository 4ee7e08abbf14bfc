"""The beginning of prompts, computed once for all rows that start with it."""

import dataclasses
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
from vipllava_jax.generation.rows import to_host
from vipllava_jax.generation.state import State
from vipllava_jax.inputs.batch import Batch, bucket, describe_array
from vipllava_jax.inputs.padding import pad_ids, round_up
from vipllava_jax.model import vipllava
from vipllava_jax.model.llama import Cache, PrefixCache, write_to_cache
from vipllava_jax.model.vipllava import Params
from vipllava_jax.sharding import mesh_of, pin, placed_shape
from vipllava_jax.threads import background

SUFFIX_STEP = 32  # what follows a prefix is short, so it is padded less than by `bucket`


@struct.dataclass
class PrefixArrays:
    """What the programs take of A prefixes, each of which B / A consecutive rows share."""

    ids: Any  # AS int32, padded
    cache: PrefixCache

    @property
    def slots(self) -> int:
        return self.cache.k[0].shape[1]

    def of_rows(self, slots: int, pad: int, B: int) -> tuple[Array, Array]:
        """The ids BS of the prefixes of B rows, padded to `slots`, and their numbers B."""
        A, S = self.ids.shape
        filled = jnp.arange(S) < self.cache.of_rows(A)[:, None]  # a prefix that is cut still has all its ids
        ids = jnp.pad(jnp.where(filled, self.ids, pad), ((0, 0), (0, slots - S)), constant_values=pad)
        return jnp.repeat(ids, B // A, axis=0), self.cache.of_rows(B)


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first ids of prompts, the images among them, and their keys and values on the device."""

    ids: np.ndarray  # P int32, with a placeholder for each feature of an image
    images: np.ndarray  # Ihw3 float32
    spans: np.ndarray  # I2, where the placeholders of each image begin and end
    arrays: PrefixArrays  # of this prefix alone

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f'Prefix(ids={describe_array(self.ids)}, images={describe_array(self.images)})'

    def check_model(self, cfg: Config) -> None:
        """Raises ValueError if the keys and values have other sizes than those of a model."""
        k, text = self.arrays.cache.k, cfg.text
        found, expected = (len(k), *k[0].shape[2:]), (text.layers, text.kv_heads, text.head_size)
        if found != expected:
            sizes = ['{} layers of {} heads of {}'.format(*x) for x in (found, expected)]
            raise ValueError(f'the prefix was computed by another model: it has {sizes[0]}, not {sizes[1]}')

    def common_length(self, batch: Batch) -> int:
        """The number of ids with which this prefix and all rows of a batch begin; see `common_length`."""
        return common_length(self.ids, self.images, self.spans, batch)

    def cut(self, length: int) -> 'Prefix':
        """The first `length` ids as a prefix, with the same buffers; ValueError if that divides an image."""
        begins, ends = self.spans.T
        if not 0 < length <= len(self) or ((begins < length) & (length < ends)).any():
            raise ValueError(f'a prefix of {len(self)} ids cannot be cut to {length} ids, or not in an image')
        I = int((ends <= length).sum())
        cache = dataclasses.replace(self.arrays.cache, lengths=np.array([length], np.int32))
        arrays = dataclasses.replace(self.arrays, cache=cache)
        return Prefix(self.ids[:length], self.images[:I], self.spans[:I], arrays)

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


def common_length(ids: np.ndarray, images: np.ndarray, spans: np.ndarray, batch: Batch) -> int:
    """The number of the ids P with which all rows of a batch begin, at least one less than each row has.

    Of the images Ihw3 among the ids, those at `spans` I2, only equal ones with all of their placeholders are
    counted.
    """
    length = len(ids)
    for row, n, of_row, I in zip(batch.tokens, batch.lengths, batch.images, batch.image_counts, strict=True):
        length = min(length, int(n) - 1)
        different = row[:length] != ids[:length]
        length = int(different.argmax()) if different.any() else length
        for i, (begin, end) in enumerate(spans.tolist()):
            if begin < length and (length < end or i >= I or not np.array_equal(of_row[i], images[i])):
                length = begin
    return length


def image_spans(ids: np.ndarray, cfg: Config) -> np.ndarray:
    """Where the placeholders of each of the I images among ids begin and end, I2."""
    placeholders = np.flatnonzero(ids == cfg.image_token).reshape(-1, cfg.vision.patches)
    return placeholders[:, [0, -1]] + [0, 1]


def compute_prefix(params: Params, ids: np.ndarray, images: np.ndarray, *, cfg: Config) -> Prefix:
    """Runs the model over the first ids P of prompts, and the images Ihw3 among them."""
    batch = _single_row(ids, images, cfg)
    _, cache = read_prompts(params, batch, cfg=cfg)
    return Prefix(
        batch.tokens[0, : len(ids)], images, image_spans(ids, cfg), PrefixArrays(batch.tokens, cache)
    )


def compile_prefix(
    params: Params, ids: np.ndarray, images: np.ndarray, *, cfg: Config
) -> tuple[Prefix, Callable[[], Any]]:
    """Starts to compile what `compute_prefix` runs -> a prefix for `compile_for`, and a function that waits.

    The params may be shapes with shardings; the keys and values of the prefix are.
    """
    batch, mesh = _single_row(ids, images, cfg), mesh_of(params)
    traced = read_prompts.trace(params, batch, cfg=cfg)
    wait = background(traced.lower().compile)

    arrays = PrefixArrays(batch.tokens, map_prefix(partial(placed_shape, mesh=mesh), traced.out_info[1]))
    return Prefix(batch.tokens[0, : len(ids)], images, image_spans(ids, cfg), arrays), wait


def _single_row(ids: np.ndarray, images: np.ndarray, cfg: Config) -> Batch:
    tokens = pad_ids([ids], bucket(len(ids)), cfg.pad)
    return Batch(tokens, np.array([len(ids)], np.int32), images[None], np.array([len(images)], np.int32))


@partial(jax.jit, static_argnames='cfg')
def read_prompts(params: Params, batch: Batch, *, cfg: Config) -> tuple[Array, PrefixCache]:
    """The logits AV after each prompt of a batch, and its keys and values, as prefixes of other rows."""
    logits, cache = vipllava.prefill(
        params,
        batch.tokens,
        batch.images,
        lengths=batch.lengths,
        slots=batch.tokens.shape[1],
        cfg=cfg,
        image_counts=batch.image_counts,
    )
    prefix, mesh = PrefixCache(cache.k, cache.v, jnp.asarray(batch.lengths)), mesh_of(params)
    return pin(logits, 'BV', mesh), pin_prefix(prefix, mesh)


def join_prefix(prefix: PrefixCache, cache: Cache, slots: int) -> Cache:
    """The cache of B rows, each with its own copy of its prefix before what is in the given cache BSKH.

    It has `slots` slots, which must be enough for the filled ones of both.
    """
    B = len(cache.k[0])

    @partial(jax.jit, inline=True)  # so that it is traced once for all layers
    def join(shared: Array, own: Array) -> Array:
        copies = jnp.repeat(shared[:, :slots], B // len(shared), axis=0)
        empty = ((0, 0), (0, slots - copies.shape[1]), (0, 0), (0, 0))
        return pin(write_to_cache(jnp.pad(copies, empty), own, prefix.of_rows(B)), 'BSKH')

    return Cache(*(tuple(map(join, *kv)) for kv in ((prefix.k, cache.k), (prefix.v, cache.v))))


def prefix_of_row(state: State, images: np.ndarray, cfg: Config) -> Prefix:
    """What is in the cache of a row, the first of a state, as a prefix; images Ihw3 are those among its ids.

    The buffers of the state are those of the prefix if it has no other rows.
    """
    ids = to_host(state.ids)[:1]
    # A placeholder that the model has generated is no image: the prefix ends before it.
    generated = np.flatnonzero(ids[0] == cfg.image_token)[len(images) * cfg.vision.patches :]
    P = int(min(to_host(state.positions)[0], *generated[:1], ids.shape[1]))
    k, v = (tuple(x[:1] for x in kv) for kv in (state.cache.k, state.cache.v))
    cache = PrefixCache(k, v, np.array([P], np.int32))
    return Prefix(ids[0, :P], images, image_spans(ids[0, :P], cfg), PrefixArrays(ids, cache))


def map_prefix(f: Callable[[Any, str], Any], prefix: PrefixCache | None) -> Any:
    """Applies f to each leaf of a prefix and its letters; a prefix is divided like the rows that share it."""
    return jax.tree.map(lambda x: f(x, 'BSKH' if x.ndim == 4 else 'B'), prefix)


def pin_prefix(prefix: PrefixCache | None, mesh: Any) -> Any:
    """The prefix with the shardings of its letters (under jit), which all programs that take it expect."""
    return map_prefix(partial(pin, mesh=mesh), prefix)
