"""The compiled programs of the engine; each has few shapes, so that all are compiled before any question."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array, lax

from vipllava_jax.config import Config
from vipllava_jax.engine.launching import WithoutGraphs
from vipllava_jax.engine.row_settings import RowSettings, with_tokens
from vipllava_jax.generation.logits.next_token import NewTokens, reported, scores_of
from vipllava_jax.generation.logits.repeats import repeats_of
from vipllava_jax.generation.logits.sampling import most_likely, select
from vipllava_jax.generation.prefix import join_prefix
from vipllava_jax.generation.programs import NOT_FINITE, is_usable
from vipllava_jax.generation.state import pin_rows
from vipllava_jax.model import vipllava
from vipllava_jax.model.llama import Cache, PrefixCache
from vipllava_jax.model.projector import place_features
from vipllava_jax.model.vipllava import Params, VipLlava
from vipllava_jax.sharding import mesh_of, pin

PICTURES = 8  # of one prefill; the features of fewer are padded to as many


@struct.dataclass
class Lane:
    """Rows of a cache, and the newest token of each, which is not in the cache yet.

    The cache may have fewer rows than B, whose slots the rows of the lane divide among them.
    """

    cache: Cache  # 2L times BSKH
    tokens: Array  # B int32
    positions: Array  # B int32, the positions of these tokens; 0 in free rows


@partial(WithoutGraphs, static_argnames='cfg')
def read_pictures(params: Params, pixels: Array, normalized: Array, *, cfg: Config) -> Array:
    """Pictures Fhw3 uint8, at most PICTURES -> their features FPD, padded to PICTURES.

    `normalized` are the float32 values that stand for 0 to 255 in each channel, 256 x 3. Looked up, they are
    exactly those of `ImageSettings.normalize`; compiled arithmetic would round differently.
    """
    values = normalized[pixels, jnp.arange(3)]
    features: Any = VipLlava(cfg).apply({'params': params}, values[:, None], method='features')
    padded = jnp.pad(features[:, 0], ((0, PICTURES - len(pixels)), (0, 0), (0, 0)))
    return pin_rows(padded, mesh_of(params))


@partial(WithoutGraphs, static_argnames=('cfg', 'slots'))
def prefill_prompts(
    params: Params, tokens: Array, lengths: Array, features: Array, sources: Array, *, cfg: Config, slots: int
) -> tuple[Array, Cache]:
    """Prompts BT -> the logits BV after the `lengths` B tokens of each, and a cache of `slots` slots.

    `sources` BT are the numbers of the features, counted over all pictures FP, that replace tokens; -1 where
    a token is text.
    """

    def run(model: VipLlava) -> tuple[Array, Cache]:
        x = place_features(model.embed(tokens, None), features, sources)
        return model.prefill_embeddings(x, lengths, slots)

    found: Any = VipLlava(cfg).apply({'params': params}, method=run)
    logits, cache = found
    return pin(logits, 'BV', mesh_of(params)), pin_cache(cache, mesh_of(params))


@partial(WithoutGraphs, static_argnames=('cfg', 'slots', 'joined'))
def prefill_after(
    params: Params,
    tokens: Array,
    lengths: Array,
    prefix: PrefixCache,
    *,
    cfg: Config,
    slots: int,
    joined: bool,
) -> tuple[Array, Cache]:
    """Tokens BT that follow a prefix -> the logits BV after them, and a cache of `slots` slots.

    The cache holds the tokens of the prefix, too, if it is to be `joined`.
    """
    T = tokens.shape[1]
    logits, cache = vipllava.prefill(
        params, tokens, lengths=lengths, slots=T if joined else slots, prefix=prefix, cfg=cfg
    )
    if joined:
        cache = join_prefix(prefix, cache, slots)
    return pin(logits, 'BV', mesh_of(params)), pin_cache(cache, mesh_of(params))


@partial(jax.jit, static_argnames='top')
def select_first(
    logits: Array, lengths: Array, allowed: Array, settings: RowSettings | None, *, top: int | None
) -> tuple[NewTokens, RowSettings | None]:
    """Logits BV after prompts of `lengths` B tokens -> the first new tokens B, and the settings with them.

    They are among the ids `allowed` BW uint32, a bit for each. The token is NOT_FINITE for a row whose logits
    hold NaN or infinity, unless its processors replace them.
    """
    if settings is not None and settings.processing is not None:
        longest = settings.processing.no_repeat_ngram_size.max() - 1
        repeats = repeats_of(settings.known_ids, lengths, longest)
        settings = dataclasses.replace(settings, repeats=repeats)
    limited = pin(jnp.where(bits_of(allowed, logits.shape[-1]), logits, -jnp.inf), 'BV', mesh_of(logits))
    tokens, new, settings = _select(limited, lengths, settings, top, logits)
    usable = is_usable(logits, None if settings is None else settings.processing)
    new = dataclasses.replace(new, tokens=jnp.where(usable, tokens, NOT_FINITE))
    return pin_rows(new, mesh_of(logits)), pin_rows(settings, mesh_of(logits))


@partial(jax.jit, static_argnames='cfg', donate_argnames='caches')
def decode_lanes(
    params: Params,
    caches: Sequence[Cache],
    tokens: Sequence[Array],
    positions: Sequence[Array],
    prefix: PrefixCache | None = None,
    *,
    cfg: Config,
) -> tuple[Array, Sequence[Cache]]:
    """The newest tokens of lanes, B in all, at their positions -> logits BV, and the caches with them.

    The caches are donated. Rows that are members of `prefix` have caches of what follows it.
    """
    at, mesh = jnp.concatenate(positions), mesh_of(params)
    rows = [divided(cache, len(of_lane)) for cache, of_lane in zip(caches, tokens, strict=True)]
    logits, filled = vipllava.decode(params, jnp.concatenate(tokens), rows, at, prefix=prefix, cfg=cfg)
    whole = [divided(new, rows_of(cache)) for new, cache in zip(filled, caches, strict=True)]
    return pin(logits, 'BV', mesh), [pin_cache(cache, mesh) for cache in whole]


@partial(jax.jit, static_argnames='top')
def select_next(
    logits: Array,
    positions: Sequence[Array],
    active: Sequence[Array],
    settings: Sequence[RowSettings] | None,
    *,
    top: int | None,
) -> tuple[Sequence[Array], Sequence[Array], Sequence[RowSettings] | None, NewTokens]:
    """Logits BV of the rows of lanes -> the tokens, positions and settings of each lane, all new tokens B.

    Rows that are not `active` are free: their positions become 0.
    """
    sizes = [len(of_lane) for of_lane in positions]
    joined = jnp.where(jnp.concatenate(active), jnp.concatenate(positions) + 1, 0)
    whole = None
    if settings is not None:
        whole = jax.tree.map(lambda *parts: jnp.concatenate(parts), *settings)
    tokens, new, whole = _select(logits, joined, whole, top)
    mesh = mesh_of(logits)

    def split(x: Array) -> list[Array]:
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return pin_rows([x[end - size : end] for size, end in zip(sizes, ends, strict=True)], mesh)

    of_lanes = None
    if whole is not None:
        leaves, form = jax.tree.flatten(whole)
        parts = zip(*map(split, leaves), strict=True)
        of_lanes = [jax.tree.unflatten(form, of_lane) for of_lane in parts]
    return split(tokens), split(joined), of_lanes, pin_rows(new, mesh)


def _select(
    logits: Array, lengths: Array, settings: RowSettings | None, top: int | None, own: Array | None = None
) -> tuple[Array, NewTokens, RowSettings | None]:
    """Logits BV after `lengths` B tokens -> the tokens B, what is reported of them, and the settings.

    `own` are the logits of the model, which are reported, if they are others.
    """
    own = logits if own is None else own
    if settings is None:
        tokens = most_likely(logits)
        return tokens, reported(tokens, own, logits, top), None
    sampling, processing = settings.sampling_with_keys, settings.processing
    scores = scores_of(logits, settings.known_ids, lengths, settings.repeats, sampling, processing)
    tokens = select(scores, sampling, lengths)
    return tokens, reported(tokens, own, scores, top), with_tokens(settings, tokens, lengths)


@partial(jax.jit, donate_argnames='lane')
def put_rows(lane: Lane, rows: Array, cache: Cache, tokens: Array, positions: Array) -> Lane:
    """The lane, which is donated, with caches, newest tokens and their positions, B, in its `rows` B.

    Rows that the lane does not have are dropped. The caches have as many slots as the lane, or fewer; what
    the lane has in the slots beyond does not matter.
    """

    mesh = mesh_of(lane)

    @partial(jax.jit, inline=True)  # so that it is traced once for all layers
    def put(x: Array, new: Array) -> Array:
        of_lane = x.reshape(len(lane.tokens), -1, *x.shape[2:])
        filled = of_lane.at[rows, : new.shape[1]].set(new, mode='drop', unique_indices=True)
        return pin(filled.reshape(x.shape), 'BSKH', mesh)

    return Lane(
        jax.tree.map(put, lane.cache, cache),
        pin_rows(lane.tokens.at[rows].set(tokens, mode='drop', unique_indices=True), mesh),
        pin_rows(lane.positions.at[rows].set(positions, mode='drop', unique_indices=True), mesh),
    )


@jax.jit
def put_alternately(many: Any, few: Any) -> Any:
    """Arrays whose first axis is the batch, with the rows of others in every second row, the first one on."""
    return pin_rows(jax.tree.map(lambda x, new: x.at[::2].set(new), many, few), mesh_of(many))


@partial(jax.jit, donate_argnames='lane')
def put_token(lane: Lane, row: Array, token: Array) -> Lane:
    """The lane, which is donated, with another newest token, of one row: B = 1."""
    tokens = lax.dynamic_update_slice_in_dim(lane.tokens, token, row, axis=0)
    return dataclasses.replace(lane, tokens=pin_rows(tokens, mesh_of(lane)))


@jax.jit
def take_row(lane: Lane, row: Array) -> tuple[Cache, Array]:
    """The cache and the newest token of one row of a lane, B = 1."""
    whole = divided(lane.cache, len(lane.tokens)), lane.tokens
    cache, token = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, row, 1), whole)
    return pin_cache(cache, mesh_of(lane)), pin_rows(token, mesh_of(lane))


@partial(jax.jit, static_argnames='slots')
def take_after_prefix(lane: Lane, row: Array, prefix: Array, *, slots: int) -> tuple[Cache, Array]:
    """`take_row` of a row whose first `prefix` tokens are a prefix: the `slots` slots that follow it."""
    cache, token = take_row(lane, row)
    own = jax.tree.map(lambda x: x.at[:, prefix + jnp.arange(slots)].get(mode='clip'), cache)
    return pin_cache(own, mesh_of(lane)), token


@jax.jit
def take_logits(logits: Array, row: Array) -> Array:
    """The logits of one row, 1V."""
    return pin(lax.dynamic_slice_in_dim(logits, row, 1), 'BV', mesh_of(logits))


@partial(jax.jit, static_argnames='slots')
def take_prefix(cache: Cache, row: Array, *, slots: int) -> Cache:
    """The first slots of one row of a cache, B = 1."""

    def take(x: Array) -> Array:
        return lax.dynamic_slice(x, (row, 0, 0, 0), (1, slots, *x.shape[2:]))

    return pin_cache(jax.tree.map(take, cache), mesh_of(cache))


def rows_of(cache: Cache) -> int:
    """The number of rows of a cache."""
    return len(cache.k[0])


def divided(cache: Cache, B: int) -> Cache:
    """A cache as B rows, several of which lie one after another in one of its own; or the reverse."""
    return jax.tree.map(lambda x: x.reshape(B, -1, *x.shape[2:]), cache)


def pin_cache(cache: Cache, mesh: Any) -> Cache:
    """The cache with the shardings of its letters (under jit), which all programs that take it expect."""
    return jax.tree.map(lambda x: pin(x, 'BSKH', mesh), cache)


def bits_of(sets: Array, V: int) -> Array:
    """Sets of ids BW uint32, with a bit for each -> whether each id is in them, BV bool."""
    bits = sets[:, :, None] >> jnp.arange(32, dtype=jnp.uint32) & 1
    return bits.reshape(len(sets), -1)[:, :V] > 0
