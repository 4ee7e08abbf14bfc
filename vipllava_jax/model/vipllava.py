"""The whole model (vision tower, projector, decoder) and the public functions that run it.

The public functions are pure: `params`, a nested dict of arrays, is the first argument. They can be jitted
with a static `cfg`; outside jit they first check that the images fit the tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vipllava_jax.config import Config
from vipllava_jax.model.clip import Clip
from vipllava_jax.model.input_checks import check_inputs, check_shapes
from vipllava_jax.model.llama import AttentionSpec, Cache, Llama, PrefixCache
from vipllava_jax.model.projector import Projector, merge

Params = dict[str, Any]


class Trace(NamedTuple):
    """The logits of a forward pass and its intermediate results."""

    logits: Array  # BTV, float32
    hidden_states: tuple[Array, ...]  # L+1 times BTD: embeddings, then layer outputs, the last after the norm
    attentions: tuple[Array, ...]  # L times BNTS
    image_features: Array | None  # BIPD, P without the class token


class VipLlava(nn.Module):
    """The vision tower, the projector and the decoder; its methods implement the public functions below."""

    cfg: Config

    def setup(self) -> None:
        self.clip = Clip(self.cfg)
        self.projector = Projector(self.cfg)
        self.llama = Llama(self.cfg)

    def features(self, images: Array) -> Array:
        """Images BIhw3 -> the features BIPD that replace their placeholders; P without the class token."""
        B, I = images.shape[:2]
        taps = self.clip(images.reshape(B * I, *images.shape[2:]))
        x = self.projector(jnp.concatenate([x[:, 1:] for x in taps], axis=-1))
        return x.reshape(B, I, *x.shape[1:])

    def embed(self, tokens: Array, features: Array | None, embeddings: Array | None = None) -> Array:
        """Tokens BT -> embeddings BTD, with the n-th placeholder of each row replaced by its n-th feature.

        `embeddings` BTD, if given, are used instead of those of the tokens.
        """
        if embeddings is None:
            x = self.llama.embed(tokens)
        else:
            self.llama.embed(tokens, embeddings.dtype)  # so that `init` creates the table, in this dtype
            x = embeddings
        return x if features is None else merge(x, features, tokens == self.cfg.image_token)

    def forward(
        self,
        tokens: Array,
        images: Array | None,
        embeddings: Array | None = None,
        positions: Array | None = None,
        mask: Array | None = None,
        return_weights: bool = False,
    ) -> Trace:
        features = None if images is None else self.features(images)
        x = self.embed(tokens, features, embeddings)
        if positions is None:
            positions = jnp.arange(x.shape[1])[None]
        states, _, attentions = self.llama(x, AttentionSpec(positions, None, mask, return_weights))
        kept = tuple(w for w in attentions if w is not None)
        return Trace(self.llama.logits(states[-1]), tuple(states), kept, features)

    def prefill(
        self,
        tokens: Array,
        images: Array | None,
        lengths: Array,
        slots: int,
        prefix: PrefixCache | None = None,
    ) -> tuple[Array, Cache]:
        x = self.embed(tokens, None if images is None else self.features(images))
        return self.prefill_embeddings(x, lengths, slots, prefix)

    def prefill_embeddings(
        self, x: Array, lengths: Array, slots: int, prefix: PrefixCache | None = None
    ) -> tuple[Array, Cache]:
        """Embeddings BTD -> logits BV after the last of the `lengths` B tokens of each row, and the cache."""
        empty = Cache.empty(self.cfg.text, len(x), slots, x.dtype)
        positions = jnp.arange(x.shape[1])[None]
        if prefix is not None:
            positions += prefix.of_rows(len(x))[:, None]
        states, (cache,), _ = self.llama(x, AttentionSpec(positions), [empty], prefix, lengths - 1)
        return self.llama.logits(states[-1])[:, 0], cache

    def extend(
        self,
        tokens: Array,
        images: Array | None,
        caches: Sequence[Cache],
        start: Array,
        lengths: Array,
        last_only: bool,
        prefix: PrefixCache | None = None,
    ) -> tuple[Array, list[Cache]]:
        x = self.embed(tokens, None if images is None else self.features(images))
        positions = start[:, None] + jnp.arange(tokens.shape[1])
        slots = start if prefix is None else start - prefix.of_rows(len(x))
        last = lengths - 1 if last_only else None
        states, caches, _ = self.llama(x, AttentionSpec(positions, slots), caches, prefix, last)
        logits = self.llama.logits(states[-1])
        return logits[:, 0] if last_only else logits, caches


def forward(
    params: Params,
    tokens: ArrayLike | None = None,
    images: ArrayLike | None = None,
    *,
    cfg: Config,
    image_counts: ArrayLike | None = None,
    embeddings: ArrayLike | None = None,
    positions: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    feature_layers: Sequence[int] | None = None,
    trace: bool = False,
) -> Array | Trace:
    """Tokens BT and images BIhw3 -> float32 logits BTV or, with `trace`, a `Trace`.

    `image_counts` B is how many of the I images each row has (default: all). `embeddings` BTD replace the
    tokens; a placeholder is where they equal the embedding of the image token. `positions` BT are those of
    the rotary embeddings (default: 0, 1, 2, …). `mask` BT is False at padding. `feature_layers` replace
    those of the config. Under jit, the fields of a trace that you do not use cost nothing, except for the
    softmax of the attention weights.

    Raises ValueError if the shapes do not fit the config, if a token id is outside the vocabulary, or if the
    placeholders of a row do not match its images; the message then names the row and both counts.
    """
    if (tokens is None) == (embeddings is None):
        raise ValueError('forward takes either tokens or embeddings, and exactly one of them')
    ids = tokens if embeddings is None else _placeholder_tokens(params, embeddings, cfg)
    assert ids is not None
    if feature_layers is not None:
        cfg = _with_feature_layers(cfg, feature_layers)
    check_inputs(ids, images, image_counts, cfg)
    x = None if embeddings is None else jnp.asarray(embeddings, params['llama']['embed']['w'].dtype)
    positions = None if positions is None else jnp.asarray(positions)
    mask = None if mask is None else jnp.asarray(mask, bool)
    ids = jnp.asarray(ids)
    out = _apply(params, cfg, 'forward', ids, _images(images), x, positions, mask, trace)
    return out if trace else out.logits


def prefill(
    params: Params,
    tokens: ArrayLike,
    images: ArrayLike | None = None,
    *,
    cfg: Config,
    slots: int,
    lengths: ArrayLike | None = None,
    image_counts: ArrayLike | None = None,
    prefix: PrefixCache | None = None,
) -> tuple[Array, Cache]:
    """Right-padded tokens BT, images BIhw3 -> logits BV after the last token of each row, and the cache.

    `lengths` B is the number of tokens of each row (default: T), and `slots` the size of the cache. With
    `prefix`, tokens and images are what follows it, and so is the cache. Raises ValueError as `forward` does,
    and if T is larger than `slots`.
    """
    check_inputs(tokens, images, image_counts, cfg, lengths)
    B, T = np.shape(tokens)
    if slots < T:
        raise ValueError(f'a prompt of {T} tokens does not fit a cache of {slots} slots')
    lengths = jnp.full(B, T) if lengths is None else jnp.asarray(lengths)
    return _apply(params, cfg, 'prefill', jnp.asarray(tokens), _images(images), lengths, slots, prefix)


def extend(
    params: Params,
    tokens: ArrayLike,
    cache: Cache | Sequence[Cache],
    start: ArrayLike,
    *,
    cfg: Config,
    images: ArrayLike | None = None,
    image_counts: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    last_only: bool = False,
    prefix: PrefixCache | None = None,
) -> tuple[Array, Any]:
    """Tokens BT that follow the `start` B tokens in each row of the cache -> logits BTV, the extended cache.

    The cache may be a list of caches, whose rows follow one another; the result is then a list, too.

    Rows are right-padded to T, and `lengths` B is the number of tokens of each (default: T). `images` BIhw3
    are those of the new tokens alone. With `last_only`, the logits are those after the last token of each
    row, BV. Keys and values past the last slot are dropped without an error, so the cache must have enough
    slots.

    Raises ValueError as `forward` does. The values of `tokens` are not checked if there are no images and
    they are a jax.Array, so that decoding does not wait for them.
    """
    check_shapes(tokens, images, image_counts, cfg, lengths, start)
    if images is not None or not isinstance(tokens, jax.Array):
        check_inputs(tokens, images, image_counts, cfg, lengths)
    B, T = np.shape(tokens)
    caches = [cache] if isinstance(cache, Cache) else cache
    if (rows := sum(len(of_rows.k[0]) for of_rows in caches)) != B:
        raise ValueError(f'the cache has {rows} rows, but the tokens have {B}')
    lengths = jnp.full(B, T) if lengths is None else jnp.asarray(lengths)
    tokens, start = jnp.asarray(tokens), jnp.asarray(start)
    images = _images(images)
    out, caches = _apply(params, cfg, 'extend', tokens, images, caches, start, lengths, last_only, prefix)
    return out, caches[0] if isinstance(cache, Cache) else caches


def decode(
    params: Params,
    tokens: ArrayLike,
    cache: Cache | Sequence[Cache],
    start: ArrayLike,
    *,
    cfg: Config,
    prefix: PrefixCache | None = None,
) -> tuple[Array, Any]:
    """Tokens B at positions `start` B -> logits BV, the extended cache.

    Equivalent to `extend` with T = 1. Raises ValueError if the shapes do not fit each other.
    """
    logits, cache = extend(params, jnp.asarray(tokens)[:, None], cache, start, cfg=cfg, prefix=prefix)
    return logits[:, 0], cache


def _with_feature_layers(cfg: Config, layers: Sequence[int]) -> Config:
    if len(layers) != len(cfg.feature_layers):
        raise ValueError(f'the projector takes {len(cfg.feature_layers)} feature_layers, not {len(layers)}')
    return dataclasses.replace(cfg, feature_layers=tuple(layers))


def _placeholder_tokens(params: Params, embeddings: ArrayLike, cfg: Config) -> Array:
    """Embeddings BTD -> tokens BT: the image token where they equal its embedding, 0 elsewhere."""
    if np.ndim(embeddings) != 3:
        raise ValueError(f'embeddings have the shape {np.shape(embeddings)}, but the model takes B×T×D')
    placeholder = params['llama']['embed']['w'][cfg.image_token]
    found = jnp.all(jnp.asarray(embeddings).astype(placeholder.dtype) == placeholder, axis=-1)
    return jnp.where(found, cfg.image_token, 0)


def _apply(params: Params, cfg: Config, method: str, *args: Any) -> Any:
    return VipLlava(cfg).apply({'params': params}, *args, method=method)


def _images(images: ArrayLike | None) -> Array | None:
    """Images as an array, or None if there are none; I = 0 also means none."""
    return None if images is None or np.shape(images)[1] == 0 else jnp.asarray(images)
