"""Selection of the next token of each row: the most likely, or a random one with the row's own key."""

import secrets
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array, lax

from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.sharding import mesh_of, per_device


@struct.dataclass
class Sampling:
    """The sampling settings of each row; the tokens of a row do not depend on other rows."""

    temperature: Array  # B, 0 for greedy decoding
    top_k: Array  # B, 0 for no limit
    top_p: Array  # B, 1 for no limit
    min_p: Array  # B, 0 for no limit
    keys: Array  # B, random keys


def sampling_of(settings: GenerationSettings, B: int, always: bool = False) -> Sampling | None:
    """The sampling settings of B rows; None if every row is greedy; that case is compiled separately.

    A single program would make greedy steps of a 7B 2 to 3 % slower on a GPU. With a `lax.cond` around the
    sampling it costs nothing at 8 rows, but 10 % at one. With `always`, greedy rows get settings too.

    Raises ValueError if a setting has another number of rows.
    """
    temperature, top_k, top_p = (settings.per_row(name, B) for name in ('temperature', 'top_k', 'top_p'))
    min_p = settings.per_row('min_p', B, none=0)
    settings.per_row('seed', B, none=0)  # also in greedy rows, another number of seeds is a mistake
    if not temperature.any() and not always:
        return None
    keys = row_keys(settings, B)
    return Sampling(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p), jnp.float32(min_p), keys)


def row_keys(settings: GenerationSettings, B: int) -> Array:
    """The random keys of B rows: fold_in(key(seed), row), or key(seed[row]) with a seed for each row."""
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    if isinstance(seed, int):
        return keys_of_rows(jax.random.key(seed), B)
    return jax.vmap(jax.random.key)(settings.per_row('seed', B).astype(np.uint32))


@partial(jax.jit, static_argnames='B')
def keys_of_rows(key: Array, B: int) -> Array:
    """The keys of B rows: the numbers of the rows folded into one key."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))


def sample_keys(keys: Array, n: int) -> Array:
    """The keys of B rows -> those of their n samples, B·n: sample 0 has the row's key, others fold in j."""
    folded = jax.vmap(lambda key: jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(n)))(keys)
    return jnp.where(jnp.arange(n) == 0, keys[:, None], folded).reshape(-1)


def select(scores: Array, sampling: Sampling | None, positions: Array) -> Array:
    """Scores BV -> tokens B: the most likely, or one sampled with the row's key folded with its position.

    Decoding is greedy for rows of temperature 0, and for all rows if `sampling` is None.
    """
    greedy = most_likely(scores)
    if sampling is None:
        return greedy
    keys = jax.vmap(jax.random.fold_in)(sampling.keys, positions)
    sampled = jax.vmap(jax.random.categorical)(keys, scores).astype(jnp.int32)
    return jnp.where(sampling.temperature > 0, sampled, greedy)


def most_likely(logits: Array) -> Array:
    """Logits BV -> the most likely tokens B; devices that hold a part of V exchange one candidate each."""
    if mesh_of(logits) is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    V = logits.shape[-1]

    def candidate(part: Array) -> Array:
        token = jnp.argmax(part, axis=-1)
        return jnp.stack([jnp.take_along_axis(part, token[:, None], axis=-1)[:, 0], jnp.float32(token)], -1)

    def best(candidates: Array, axis: str) -> Array:
        first = lax.axis_index(axis) * (V // lax.axis_size(axis))
        everywhere = lax.all_gather(candidates.at[:, 1].add(first), axis)
        winner = jnp.argmax(everywhere[:, :, 0], axis=0)  # the first, as of equal logits on one device
        return jnp.take_along_axis(everywhere, winner[None, :, None], axis=0)[0]

    return per_device(candidate, 'BV->B.', combine=best)(logits)[:, 1].astype(jnp.int32)
