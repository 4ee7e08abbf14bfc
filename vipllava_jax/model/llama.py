"""The decoder: Llama, from embeddings to logits, with a cache whose slot s holds position s."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from vipllava_jax.config import Attention, Config, TextConfig
from vipllava_jax.model.attention import attend, attention_with_weights
from vipllava_jax.model.fused import GATE_UP, QKV
from vipllava_jax.model.layers import Linear, RMSNorm, param, rope
from vipllava_jax.model.prefix_attention import PrefixKeys, attend_after_prefix
from vipllava_jax.model.weights import WeightAxes, einsum
from vipllava_jax.sharding import per_device, pin, shard_shape


@struct.dataclass
class Cache:
    """The keys and values of every layer; a row of n tokens occupies the slots 0 to n - 1."""

    k: tuple[Array, ...]  # L times BSKH
    v: tuple[Array, ...]  # L times BSKH

    @classmethod
    def empty(cls, text: TextConfig, B: int, slots: int, dtype: DTypeLike) -> 'Cache':
        """A cache of B empty rows; no two layers share a buffer, so that all buffers can be donated."""
        shape = (B, slots, text.kv_heads, text.head_size)
        k, v = ([jnp.zeros(shape, dtype) for _ in range(text.layers)] for _ in 'kv')
        return cls(tuple(k), tuple(v))


@struct.dataclass
class PrefixCache:
    """The keys and values of A beginnings of prompts, each shared by B / A consecutive rows of a batch.

    The caches of these rows hold what follows: position p is in slot p minus the length of the prefix.
    """

    k: tuple[Array, ...]  # L times ASKH
    v: tuple[Array, ...]  # L times ASKH
    lengths: Any  # A int32, the number of slots that are filled
    members: Any = None  # B bool, the rows that share it, others have caches of all their tokens; None: all

    def of_rows(self, B: int) -> Array:
        """The lengths of the prefixes of B rows; 0 for a row that shares none."""
        lengths = jnp.repeat(self.lengths, B // len(self.lengths), total_repeat_length=B)
        return lengths if self.members is None else jnp.where(self.members, lengths, 0)

    def of_layer(self, i: int) -> PrefixKeys:
        return PrefixKeys(self.k[i], self.v[i], self.lengths, self.members)


class Embed(nn.Module):
    """The embedding table w VD: tokens -> embeddings, and hidden states -> logits if it is also the head."""

    sizes: dict[str, int]

    @nn.compact
    def table(self, dtype: DTypeLike) -> Any:
        """The table VD; `init` creates it in `dtype`."""
        axes = WeightAxes('VD', indexed='V')  # if V were divided, every lookup would gather the table
        return param(self, 'w', nn.initializers.normal(0.02), axes, self.sizes, dtype)

    def __call__(self, tokens: Array, dtype: DTypeLike = jnp.float32) -> Array:
        """Tokens BT -> embeddings BTD; ids outside the table are clamped to its ends."""
        look_up = per_device(partial(jnp.take, axis=0, mode='clip'), '.D,BT->BTD')
        return pin(look_up(self.table(dtype), tokens), 'BTD')

    def logits(self, x: Array) -> Array:
        """Hidden states BTD -> float32 logits BTV, with the transposed table as the head."""
        return pin(einsum('BTD,VD->BTV', x, self.table(x.dtype), jnp.float32), 'BTV')


class AttentionSpec(NamedTuple):
    """The inputs that every layer's attention shares: positions, slots and mask.

    If `offset` is None, the prompt starts at slot 0 and attends only to its own tokens, so that cuDNN's
    causal attention can compute it.
    """

    positions: Array  # BT or 1T, for the rotary embeddings
    offset: Array | None = None  # B, the slot of each row's first token
    mask: Array | None = None  # BS, False at slots to hide
    return_weights: bool = False


class Layer(nn.Module):
    """x BTD -> x BTD, the layer's keys and values BSKH of each cache, the attention weights BNTS or None.

    With `last` B, x is that of one token of each row, B1D.
    """

    cfg: Config

    @nn.compact
    def __call__(
        self,
        x: Array,
        spec: AttentionSpec,
        cached: Sequence[tuple[Array, Array]] = (),
        prefix: PrefixKeys | None = None,
        last: Array | None = None,
    ) -> tuple[Array, list[tuple[Array, Array]], Array | None]:
        text = self.cfg.text
        s = text.sizes
        y = RMSNorm('D', s, text.eps, name='attn_norm')(x)
        if self.has_variable('params', QKV.name):
            qkv = Linear(QKV.equation, {**s, 'X': s['G'] + 2}, name=QKV.name)(y)
            qk, v = rope(qkv[:, :, :-1], spec.positions, text.rope_theta), qkv[:, :, -1]
            q, k = qk[:, :, :-1].swapaxes(2, 3).reshape(*y.shape[:2], s['N'], s['H']), qk[:, :, -1]
        else:
            q = rope(Linear('BTD,DNH->BTNH', s, name='q')(y), spec.positions, text.rope_theta)
            k = rope(Linear('BTD,DKH->BTKH', s, name='k')(y), spec.positions, text.rope_theta)
            v = Linear('BTD,DKH->BTKH', s, name='v')(y)
        weights, filled = None, [(k, v)]
        if cached:
            y, filled = attend_with_caches(q, k, v, cached, spec, prefix, self.cfg.attention)
        elif prefix is not None:
            y = attend_after_prefix(q, prefix, k, v, implementation=self.cfg.attention)
        elif spec.return_weights:
            y, weights = attention_with_weights(q, k, v, causal=True, offset=spec.offset, mask=spec.mask)
        else:
            y = attend(q, k, v, causal=True, mask=spec.mask, implementation=self.cfg.attention)
        if last is not None:
            x, y = (jax.vmap(partial(jax.lax.dynamic_slice_in_dim, slice_size=1))(z, last) for z in (x, y))
        x += Linear('BTNH,NHD->BTD', s, name='o')(y)
        y = RMSNorm('D', s, text.eps, name='mlp_norm')(x)
        if self.has_variable('params', GATE_UP.name):
            gate, up = jnp.moveaxis(Linear(GATE_UP.equation, {**s, 'X': 2}, name=GATE_UP.name)(y), 2, 0)
        else:
            gate, up = Linear('BTD,DF->BTF', s, name='gate')(y), Linear('BTD,DF->BTF', s, name='up')(y)
        return x + Linear('BTF,FD->BTD', s, name='down')(jax.nn.silu(gate) * up), filled, weights


@partial(jax.jit, static_argnames='cfg', inline=True)  # a call would move caches on TPUs
def layer_with_caches(
    params: Any,
    x: Array,
    spec: AttentionSpec,
    cached: Sequence[tuple[Array, Array]],
    prefix: PrefixKeys | None,
    last: Array | None,
    *,
    cfg: Config,
) -> tuple[Array, list[tuple[Array, Array]]]:
    """A `Layer` with caches as a function of its params, which is traced once for all layers of a program."""
    found: Any = Layer(cfg, parent=None).apply({'params': params}, x, spec, cached, prefix, last)
    x, filled, _ = found
    return x, filled


class Llama(nn.Module):
    """Embeddings BTD -> the hidden states BTD of every layer, the cache, the attention weights."""

    cfg: Config

    def setup(self) -> None:
        text = self.cfg.text
        self.embed = Embed(text.sizes)
        self.layers = [Layer(self.cfg) for _ in range(text.layers)]
        self.norm = RMSNorm('D', text.sizes, text.eps)
        if not text.tied:
            self.head = Linear('BTD,DV->BTV', text.sizes)

    def __call__(
        self,
        x: Array,
        spec: AttentionSpec,
        caches: Sequence[Cache] = (),
        prefix: PrefixCache | None = None,
        last: Array | None = None,
    ) -> tuple[list[Array], list[Cache], list[Array | None]]:
        """x BTD -> L+1 hidden states, the last after the final norm; caches; attention weights BNTS or None.

        With `last` B, the last hidden states are those of one token of each row, B1D: then most of the last
        layer is not computed for the others. The rows of the caches follow one another in the batch. Without
        any, the one that is returned holds exactly the T tokens of x.
        """
        states, layers, weights = [x], [], []
        for i, layer in enumerate(self.layers):
            cached = [(cache.k[i], cache.v[i]) for cache in caches]
            of_layer = prefix.of_layer(i) if prefix else None
            only = last if i == len(self.layers) - 1 else None
            if caches and not self.is_initializing():
                params = layer.variables['params']
                x, filled = layer_with_caches(params, x, spec, cached, of_layer, only, cfg=self.cfg)
                w = None
            else:
                x, filled, w = layer(x, spec, cached, of_layer, only)
            states.append(x)
            layers.append(filled)
            weights.append(w)
        states[-1] = self.norm(x)
        found = [Cache(*zip(*of_cache, strict=True)) for of_cache in zip(*layers, strict=True)]
        return states, found, weights

    def logits(self, x: Array) -> Array:
        """Hidden states BTD after the final norm -> float32 logits BTV."""
        return self.embed.logits(x) if self.cfg.text.tied else self.head(x, jnp.float32)


def attend_with_caches(
    q: Array,
    k: Array,
    v: Array,
    cached: Sequence[tuple[Array, Array]],
    spec: AttentionSpec,
    prefix: PrefixKeys | None = None,
    implementation: Attention | None = None,
) -> tuple[Array, list[tuple[Array, Array]]]:
    """Writes keys and values BTKH into caches; attention of queries BTNH to them -> BTNH, and the caches.

    The rows of the caches BSKH follow one another in the batch. If the offset of `spec` is None, a prompt
    attends to its own T tokens alone.
    """
    parts, filled, first = [], [], 0
    for cached_k, cached_v in cached:
        rows = slice(first, first := first + len(cached_k))
        offset, mask = (None if x is None else x[rows] for x in (spec.offset, spec.mask))
        new_k = pin(write_to_cache(cached_k, k[rows], offset), 'BSKH')
        new_v = pin(write_to_cache(cached_v, v[rows], offset), 'BSKH')
        keys, values = (k[rows], v[rows]) if offset is None else (new_k, new_v)
        own: dict[str, Any] = {'offset': offset, 'implementation': implementation}
        if prefix is None:
            y = attend(q[rows], keys, values, causal=True, mask=mask, **own)
        else:
            y = attend_after_prefix(q[rows], prefix.of_rows(rows), keys, values, **own)
        parts.append(y)
        filled.append((new_k, new_v))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts), filled


def write_to_cache(cached: Array, new: Array, offset: Array | None) -> Array:
    """Writes keys or values BTKH into the slots from `offset` B on of a cache BSKH -> the cache.

    None is slot 0 for all rows; T must then be at most S. Otherwise, what lies past the last slot is dropped.

    On a TPU, the slots of one head are stored together, unless the heads of a device fill a tile: 2, 4 or a
    multiple of 8. Writing all heads of a slot at once would then copy the cache, so heads are written one by
    one.
    """
    if offset is None:
        return jax.lax.dynamic_update_slice(cached, new, (0, 0, 0, 0))
    slots = offset.reshape(-1, 1) + jnp.arange(new.shape[1])
    by_row = jax.vmap(_write_rows)  # indexing the rows instead would gather them from all devices
    K = shard_shape(new, 'BTKH')[2]
    if K % 8 == 0 or K in (2, 4):
        return by_row(cached, new, slots)

    def by_head(cached: Array, new: Array, slots: Array) -> Array:
        # Each head has its own indices: with common ones, JAX would make the heads a part of the row again.
        repeated = jnp.broadcast_to(slots[..., None], new.shape[:3])
        return jax.vmap(jax.vmap(_write_rows, 1, 1))(cached, new, repeated)

    return jax.lax.platform_dependent(cached, new, slots, tpu=by_head, default=by_row)


def _write_rows(cached: Array, new: Array, slots: Array) -> Array:
    return cached.at[slots].set(new, mode='drop')
