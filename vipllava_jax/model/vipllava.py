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
from vipllava_jax.model.layers import LayerNorm, Linear
from vipllava_jax.model.llama import AttentionSpec, Cache, Llama

Params = dict[str, Any]


class Trace(NamedTuple):
    """The logits of a forward pass and its intermediate results."""

    logits: Array  # BTV, float32
    hidden_states: tuple[Array, ...]  # L+1 times BTD: embeddings, then layer outputs, the last after the norm
    attentions: tuple[Array, ...]  # L times BNTS
    image_features: Array | None  # BIPD, P without the class token


class Projector(nn.Module):
    """Concatenated hidden states BPM -> BPD in the width of the decoder."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        s = self.cfg.sizes
        if self.cfg.projector_norm:
            x = LayerNorm('M', s, self.cfg.projector_eps, name='norm')(x)
        x = Linear('BPM,MD->BPD', s, bias=True, name='linear_1')(x)
        x = jax.nn.gelu(x, approximate=False)
        return Linear('BPD,DE->BPE', s, bias=True, name='linear_2')(x)


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
        weights: bool = False,
    ) -> Trace:
        features = None if images is None else self.features(images)
        x = self.embed(tokens, features, embeddings)
        if positions is None:
            positions = jnp.arange(x.shape[1])[None]
        states, _, attentions = self.llama(x, AttentionSpec(positions, None, mask, weights))
        kept = tuple(w for w in attentions if w is not None)
        return Trace(self.llama.logits(states[-1]), tuple(states), kept, features)

    def prefill(self, tokens: Array, images: Array | None, lengths: Array, slots: int) -> tuple[Array, Cache]:
        x = self.embed(tokens, None if images is None else self.features(images))
        empty = Cache.empty(self.cfg.text, len(x), slots, x.dtype)
        states, cache, _ = self.llama(x, AttentionSpec(jnp.arange(x.shape[1])[None]), empty)
        last = jnp.take_along_axis(states[-1], lengths[:, None, None] - 1, axis=1)
        return self.llama.logits(last)[:, 0], cache

    def extend(self, tokens: Array, cache: Cache, start: Array) -> tuple[Array, Cache]:
        positions = start[:, None] + jnp.arange(tokens.shape[1])
        states, cache, _ = self.llama(self.llama.embed(tokens), AttentionSpec(positions, start), cache)
        return self.llama.logits(states[-1]), cache


def merge(x: Array, features: Array, placeholder: Array) -> Array:
    """Embeddings x BTD -> x with the features BIPD of each row, in order, where placeholder BT is True."""
    B, _, _, D = features.shape
    nth = jnp.maximum(jnp.cumsum(placeholder, axis=1) - 1, 0)
    inserted = jnp.take_along_axis(features.reshape(B, -1, D), nth[..., None], axis=1, mode='clip')
    return jnp.where(placeholder[..., None], inserted.astype(x.dtype), x)


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
    ids = tokens if embeddings is None else _placed(params, embeddings, cfg)
    assert ids is not None
    if feature_layers is not None:
        if len(feature_layers) != len(cfg.feature_layers):
            raise ValueError(
                f'the projector takes {len(cfg.feature_layers)} feature_layers, not {len(feature_layers)}'
            )
        cfg = dataclasses.replace(cfg, feature_layers=tuple(feature_layers))
    check(ids, images, image_counts, cfg)
    out = _apply(
        params,
        cfg,
        'forward',
        jnp.asarray(ids),
        _images(images),
        None if embeddings is None else jnp.asarray(embeddings, params['llama']['embed']['w'].dtype),
        None if positions is None else jnp.asarray(positions),
        None if mask is None else jnp.asarray(mask, bool),
        trace,
    )
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
) -> tuple[Array, Cache]:
    """Right-padded tokens BT, images BIhw3 -> logits BV after the last token of each row, and the cache.

    `lengths` B is the number of tokens of each row (default: T), and `slots` the size of the cache. Raises
    ValueError as `forward` does, and if T is larger than `slots`.
    """
    check(tokens, images, image_counts, cfg, lengths)
    B, T = np.shape(tokens)
    if slots < T:
        raise ValueError(f'a prompt of {T} tokens does not fit a cache of {slots} slots')
    lengths = jnp.full(B, T) if lengths is None else jnp.asarray(lengths)
    return _apply(params, cfg, 'prefill', jnp.asarray(tokens), _images(images), lengths, slots)


def extend(
    params: Params, tokens: ArrayLike, cache: Cache, start: ArrayLike, *, cfg: Config
) -> tuple[Array, Cache]:
    """Tokens BT that follow the `start` B tokens in each row of the cache -> logits BTV, the extended cache.

    Keys and values past the last slot are dropped without an error, so the cache must have enough slots.
    Raises ValueError if `tokens` is not a jax.Array and holds an id outside the vocabulary.
    """
    if not isinstance(tokens, jax.Array) and np.ndim(tokens) == 2:
        check_ids(np.asarray(tokens), cfg, np.asarray(tokens) != cfg.pad)
    return _apply(params, cfg, 'extend', jnp.asarray(tokens), cache, jnp.asarray(start))


def decode(
    params: Params, tokens: ArrayLike, cache: Cache, start: ArrayLike, *, cfg: Config
) -> tuple[Array, Cache]:
    """Tokens B at positions `start` B -> logits BV, the extended cache; equivalent to `extend` with T = 1."""
    logits, cache = extend(params, jnp.asarray(tokens)[:, None], cache, start, cfg=cfg)
    return logits[:, 0], cache


def check(
    tokens: ArrayLike,
    images: ArrayLike | None,
    image_counts: ArrayLike | None,
    cfg: Config,
    lengths: ArrayLike | None = None,
) -> None:
    """Raises ValueError if the shapes do not fit or, outside jit, the counts or token ids of a row do not.

    The counts are those of images, of placeholders and of tokens; the message names the row and both the
    count found and the count expected.
    """
    if np.ndim(tokens) != 2:
        raise ValueError(f'tokens have the shape {np.shape(tokens)}, but the model takes B×T')
    B, T = np.shape(tokens)
    size, patches = cfg.vision.image_size, cfg.vision.patches
    shape = (B, 0, size, size, 3) if images is None else np.shape(images)
    if len(shape) != 5 or shape[0] != B or shape[2:] != (size, size, 3):
        raise ValueError(f'images have the shape {shape}, but {B} rows of tokens take {B}×I×{size}×{size}×3')
    for name, values in (('image_counts', image_counts), ('lengths', lengths)):
        if values is not None and np.shape(values) != (B,):
            raise ValueError(f'{name} have the shape {np.shape(values)}, but {B} rows take ({B},)')
    if any(isinstance(x, jax.core.Tracer) for x in (tokens, image_counts, lengths)):
        return  # under jit the values are not known
    ids = np.asarray(tokens)
    found = (ids == cfg.image_token).sum(axis=1)
    counts = np.full(B, shape[1]) if image_counts is None else np.asarray(image_counts)
    filled = np.full(B, T) if lengths is None else np.asarray(lengths)
    for row in range(B):
        if not 0 <= counts[row] <= shape[1]:
            raise ValueError(
                f'row {row} is said to have {counts[row]} images, but images hold {shape[1]} a row'
            )
        if found[row] != counts[row] * patches:
            raise ValueError(
                f'row {row} has {found[row]} image placeholders (id {cfg.image_token}), but needs '
                f'{counts[row] * patches} for its {counts[row]} × {patches} image patches'
            )
        if not 1 <= filled[row] <= T:
            raise ValueError(f'row {row} is said to have {filled[row]} tokens, but must have 1 to {T}')
    # Image features replace the embedding of the image token, and padding is never used.
    read = (ids != cfg.image_token) & (np.arange(T) < filled[:, None])
    check_ids(ids, cfg, read if lengths is not None else read & (ids != cfg.pad))


def check_ids(ids: np.ndarray, cfg: Config, read: np.ndarray | None = None) -> None:
    """Raises ValueError for the first of ids BT outside the embedding table, where `read` BT is True."""
    beyond = (ids < 0) | (ids >= cfg.text.vocab)
    if read is not None:
        beyond &= read
    if beyond.any():
        row, at = np.argwhere(beyond)[0]
        raise ValueError(
            f'row {row} has the token id {ids[row, at]} at position {at}, but the embedding of the model has '
            f'{cfg.text.vocab} rows: ids go from 0 to {cfg.text.vocab - 1}'
        )


def _placed(params: Params, embeddings: ArrayLike, cfg: Config) -> Array:
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
