"""The embedding table and the head: reading, replacing, resizing and tying them, as functions over params."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vipllava_jax.config import Config
from vipllava_jax.model.vipllava import Params


def embeddings(params: Params) -> Array:
    """The table VD that turns tokens into embeddings."""
    return params['llama']['embed']['w']


def replace_embeddings(params: Params, table: ArrayLike) -> Params:
    """The params with another table VD of the same shape; raises ValueError for any other."""
    old = embeddings(params)
    if jnp.shape(table) != old.shape:
        raise ValueError(f'embeddings: expected the shape {old.shape}, found {jnp.shape(table)}')
    return _with(params, embed={'w': jnp.asarray(table, old.dtype)})


def resize_vocabulary(
    params: Params, cfg: Config, vocab: int, pad_to_multiple_of: int = 1
) -> tuple[Params, Config]:
    """The model with `vocab` tokens, rounded up; each new one starts as the mean of the old.

    A quantised head is of the embeddings' type afterwards.
    """
    vocab = math.ceil(vocab / pad_to_multiple_of) * pad_to_multiple_of
    llama, table = params['llama'], embeddings(params)
    parts = {'embed': {'w': _resized(table, vocab)}}
    if not cfg.text.tied:
        parts['head'] = {'w': _resized(llama['head']['w'].astype(table.dtype).T, vocab).T}
    return _with(params, **parts), _with_text(cfg, vocab=vocab)


def tie(params: Params, cfg: Config) -> tuple[Params, Config]:
    """The model whose head is its embedding table."""
    llama = {name: w for name, w in params['llama'].items() if name != 'head'}
    return {**params, 'llama': llama}, _with_text(cfg, tied=True)


def untie(params: Params, cfg: Config) -> tuple[Params, Config]:
    """The model with a head DV of its own, at first a copy of the table it was tied to."""
    if not cfg.text.tied:
        return params, cfg
    return _with(params, head={'w': jnp.array(embeddings(params).T)}), _with_text(cfg, tied=False)


def _resized(table: Array, vocab: int) -> Array:
    mean = jnp.mean(table, axis=0, dtype=jnp.float32).astype(table.dtype)
    new = jnp.broadcast_to(mean, (max(vocab - len(table), 0), table.shape[1]))
    return jnp.concatenate([table[:vocab], new])


def _with(params: Params, **parts: dict[str, Array]) -> Params:
    return {**params, 'llama': {**params['llama'], **parts}}


def _with_text(cfg: Config, **changes: Any) -> Config:
    return dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, **changes))
