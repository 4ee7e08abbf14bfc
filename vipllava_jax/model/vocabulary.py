"""Functions over params that read, replace, resize and tie the embedding table and the head."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vipllava_jax.config import Config
from vipllava_jax.model.vipllava import Params


def embeddings(params: Params) -> Array:
    """The embedding table VD of the decoder."""
    return params['llama']['embed']['w']


def replace_embeddings(params: Params, table: ArrayLike) -> Params:
    """The params with `table` VD as the embedding table; raises ValueError if its shape differs."""
    current = embeddings(params)
    if jnp.shape(table) != current.shape:
        raise ValueError(f'embeddings: expected the shape {current.shape}, found {jnp.shape(table)}')
    return _with(params, embed={'w': jnp.asarray(table, current.dtype)})


def resize_vocabulary(
    params: Params, cfg: Config, vocab: int, pad_to_multiple_of: int = 1
) -> tuple[Params, Config]:
    """The params and config with `vocab` tokens, rounded up to a multiple of `pad_to_multiple_of`.

    New rows of the embedding table and new columns of the head are the mean of the old ones; surplus ones are
    dropped. A quantized head is dequantized to the dtype of the embeddings.
    """
    vocab = math.ceil(vocab / pad_to_multiple_of) * pad_to_multiple_of
    llama, table = params['llama'], embeddings(params)
    parts = {'embed': {'w': _resized(table, vocab)}}
    if not cfg.text.tied:
        parts['head'] = {'w': _resized(llama['head']['w'].astype(table.dtype).T, vocab).T}
    return _with(params, **parts), _with_text(cfg, vocab=vocab)


def tie(params: Params, cfg: Config) -> tuple[Params, Config]:
    """The params without a head, and the config in which the embedding table is the head."""
    llama = {name: w for name, w in params['llama'].items() if name != 'head'}
    return {**params, 'llama': llama}, _with_text(cfg, tied=True)


def untie(params: Params, cfg: Config) -> tuple[Params, Config]:
    """The params with a separate head DV, initially the transposed embedding table, and the config."""
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
