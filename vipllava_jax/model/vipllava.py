"""The whole model: images through the tower and the projector into the text, and the ways to run it.

The functions at the end are the public ones. They are pure, take `params` first and plain, and can be
jitted with `cfg` static; called with concrete arrays they check first that the images fit the text.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from vipllava_jax.config import Config
from vipllava_jax.model.clip import Clip
from vipllava_jax.model.layers import LayerNorm, Linear
from vipllava_jax.model.llama import Cache, Llama, See
from vipllava_jax.model.weights import cast

Params = dict[str, Any]


class Trace(NamedTuple):
    """A forward pass with all that it went through."""

    logits: Array  # BTV, float32
    hidden_states: tuple[Array, ...]  # L+1 times BTD: the embeddings, each layer's output, the last normed
    attentions: tuple[Array, ...]  # L times BNTS
    image_features: Array | None  # BIPD, P without the class token


class Projector(nn.Module):
    """The tapped states side by side, BPM -> BPD of the text."""

    cfg: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        s = self.cfg.sizes
        if self.cfg.projector_norm:
            x = LayerNorm(s['M'], self.cfg.projector_eps, name='norm')(x)
        x = Linear('BPM,MD->BPD', s, bias=True, name='linear_1')(x)
        x = jax.nn.gelu(x, approximate=False)
        return Linear('BPD,DE->BPE', s, bias=True, name='linear_2')(x)


class VipLlava(nn.Module):
    """Clip, Projector and Llama, and what passes between them."""

    cfg: Config

    def setup(self) -> None:
        self.clip = Clip(self.cfg)
        self.projector = Projector(self.cfg)
        self.llama = Llama(self.cfg)

    def features(self, images: Array) -> Array:
        """Images BIhw3 -> BIPD, what stands in for their placeholders; P without the class token."""
        B, I = images.shape[:2]
        taps = self.clip(images.reshape(B * I, *images.shape[2:]))
        x = self.projector(jnp.concatenate([x[:, 1:] for x in taps], axis=-1))
        return x.reshape(B, I, *x.shape[1:])

    def embed(self, tokens: Array, features: Array | None) -> Array:
        """Tokens BT, or embeddings BTD -> BTD, the n-th placeholder of a row replaced by its n-th feature."""
        if tokens.ndim == 2:
            x, placeholder = self.llama.embed(tokens), tokens == self.cfg.image_token
        else:
            x = tokens
            placeholder = jnp.all(x == self.llama.embed(jnp.array(self.cfg.image_token)), axis=-1)
        return x if features is None else merge(x, features, placeholder)

    def forward(
        self,
        tokens: Array,
        images: Array | None,
        positions: Array | None = None,
        mask: Array | None = None,
        weights: bool = False,
    ) -> Trace:
        features = None if images is None else self.features(images)
        x = self.embed(tokens, features)
        if positions is None:
            positions = jnp.arange(x.shape[1])[None]
        states, _, attentions = self.llama(x, See(positions, 0, mask, weights))
        kept = tuple(w for w in attentions if w is not None)
        return Trace(self.llama.logits(states[-1]), tuple(states), kept, features)

    def prefill(self, tokens: Array, images: Array | None, lengths: Array, slots: int) -> tuple[Array, Cache]:
        x = self.embed(tokens, None if images is None else self.features(images))
        empty = Cache.empty(self.cfg.text, len(x), slots, x.dtype)
        states, cache, _ = self.llama(x, See(jnp.arange(x.shape[1])[None], 0), empty)
        last = jnp.take_along_axis(states[-1], lengths[:, None, None] - 1, axis=1)
        return self.llama.logits(last)[:, 0], cache

    def extend(self, tokens: Array, cache: Cache, start: Array) -> tuple[Array, Cache]:
        positions = start[:, None] + jnp.arange(tokens.shape[1])
        states, cache, _ = self.llama(self.llama.embed(tokens), See(positions, start), cache)
        return self.llama.logits(states[-1]), cache


def merge(x: Array, features: Array, placeholder: Array) -> Array:
    """x BTD with the features BIPD of each row, in order, where its placeholder BT is true."""
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
    """Tokens BT and images BIhw3 -> logits BTV, float32; with `trace`, a `Trace` of everything between.

    image_counts B says how many of the I images each row has (all of them by default); `embeddings`
    BTD stand in for tokens, `positions` BT turn the queries and keys (0, 1, 2, … by default), `mask`
    BT is false at padding, `feature_layers` are tapped instead of the config's. Under jit, what you
    do not use of a trace costs nothing but the attention weights' softmax.

    Raises ValueError if a row's placeholders and images do not fit, naming the row and both counts.
    """
    if (tokens is None) == (embeddings is None):
        raise ValueError('forward takes either tokens or embeddings, and exactly one of them')
    if feature_layers is not None:
        cfg = dataclasses.replace(cfg, feature_layers=tuple(feature_layers))
    if tokens is not None:
        check(tokens, images, image_counts, cfg)
    out = _apply(
        params,
        cfg,
        'forward',
        jnp.asarray(embeddings if tokens is None else tokens),
        _images(images),
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
    """Right-padded tokens BT, images BIhw3 -> the logits BV after each row's last token, a cache of `slots`.

    lengths B counts each row's tokens (all T by default). Raises ValueError as `forward` does, and if
    the prompt does not fit the slots.
    """
    check(tokens, images, image_counts, cfg)
    B, T = jnp.shape(tokens)
    if slots < T:
        raise ValueError(f'a prompt of {T} tokens does not fit a cache of {slots} slots')
    lengths = jnp.full(B, T) if lengths is None else jnp.asarray(lengths)
    return _apply(params, cfg, 'prefill', jnp.asarray(tokens), _images(images), lengths, slots)


def extend(
    params: Params, tokens: ArrayLike, cache: Cache, start: ArrayLike, *, cfg: Config
) -> tuple[Array, Cache]:
    """Tokens BT after the `start` B tokens each row's cache holds -> logits BTV, the longer cache.

    What would be written past the last slot is dropped: give the cache enough slots.
    """
    return _apply(params, cfg, 'extend', jnp.asarray(tokens), cache, jnp.asarray(start))


def decode(
    params: Params, tokens: ArrayLike, cache: Cache, start: ArrayLike, *, cfg: Config
) -> tuple[Array, Cache]:
    """One token B a row at position `start` B -> logits BV, the longer cache: `extend` with T = 1."""
    logits, cache = extend(params, jnp.asarray(tokens)[:, None], cache, start, cfg=cfg)
    return logits[:, 0], cache


def init(key: Array, cfg: Config, dtype: DTypeLike = jnp.float32) -> Params:
    """Random params of the config's shapes: products of variance 1, gains 1, shifts 0."""
    images = jnp.zeros((1, 1, cfg.vision.image_size, cfg.vision.image_size, 3), dtype)
    embeddings = jnp.zeros((1, 1, cfg.text.width), dtype)
    params = VipLlava(cfg).init(key, embeddings, images, method='forward')['params']
    return cast(params, dtype)  # all but the embedding table were made in that of what they multiply


def abstract(cfg: Config, dtype: DTypeLike = jnp.float32) -> Params:
    """The shapes of the params, as jax.ShapeDtypeStruct, nothing allocated."""
    return jax.eval_shape(lambda key: init(key, cfg, dtype), jax.random.key(0))


def check(tokens: ArrayLike, images: ArrayLike | None, image_counts: ArrayLike | None, cfg: Config) -> None:
    """Raises ValueError, naming the row and both counts, unless each row's placeholders fit its images."""
    shape = (0, 0) if images is None else jnp.shape(images)
    size = cfg.vision.image_size
    if images is not None and shape[2:] != (size, size, 3):
        raise ValueError(f'images have the shape {shape}, but the model takes B×I×{size}×{size}×3')
    if isinstance(tokens, jax.core.Tracer) or isinstance(image_counts, jax.core.Tracer):
        return  # under jit there is nothing to count
    found = (np.asarray(tokens) == cfg.image_token).sum(axis=1)
    counts = np.full(len(found), shape[1]) if image_counts is None else np.asarray(image_counts)
    for row in np.flatnonzero(found != counts * cfg.vision.patches):
        raise ValueError(
            f'row {row} has {found[row]} image placeholders (id {cfg.image_token}), but needs '
            f'{counts[row] * cfg.vision.patches} for its {counts[row]} × {cfg.vision.patches} image patches'
        )


def _apply(params: Params, cfg: Config, method: str, *args: Any) -> Any:
    return VipLlava(cfg).apply({'params': params}, *args, method=method)


def _images(images: ArrayLike | None) -> Array | None:
    """A batch of text alone may say so with I = 0."""
    return None if images is None or jnp.shape(images)[1] == 0 else jnp.asarray(images)
