"""The decoder: Llama, from embeddings to logits, with a cache whose slot s holds position s."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array
from jax.typing import DTypeLike

from vipllava_jax.config import Config, TextConfig
from vipllava_jax.model.attention import attend, attention_with_weights
from vipllava_jax.model.layers import Linear, RMSNorm, rope
from vipllava_jax.model.weights import LoRA, einsum, rearrange


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


class Embed(nn.Module):
    """Tokens BT -> embeddings BTD, rows of the table w VD; ids outside the table are clamped to its ends."""

    sizes: dict[str, int]

    def setup(self) -> None:
        self.w = self.param('w', nn.initializers.normal(0.02), (self.sizes['V'], self.sizes['D']))

    def __call__(self, tokens: Array) -> Array:
        return jnp.take(self.w, tokens, axis=0, mode='clip')

    def logits(self, x: Array) -> Array:
        """Hidden states BTD -> float32 logits BTV, with the transposed table as the head."""
        return einsum('BTD,VD->BTV', x, self.w, jnp.float32)


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
    """x BTD -> x BTD, the layer's keys and values BSKH, the attention weights BNTS or None."""

    cfg: Config

    @nn.compact
    def __call__(
        self, x: Array, spec: AttentionSpec, cached: tuple[Array, Array] | None
    ) -> tuple[Array, tuple[Array, Array], Array | None]:
        text = self.cfg.text
        s = text.sizes
        y = RMSNorm(s['D'], text.eps, name='attn_norm')(x)
        if self.has_variable('params', 'qkv'):
            qkv = Linear('BTD,DXKH->BTXKH', {**s, 'X': s['G'] + 2}, name='qkv')(y)
            qk, v = rope(qkv[:, :, :-1], spec.positions, text.rope_theta), qkv[:, :, -1]
            q, k = qk[:, :, :-1].swapaxes(2, 3).reshape(*y.shape[:2], s['N'], s['H']), qk[:, :, -1]
        else:
            q = rope(Linear('BTD,DNH->BTNH', s, name='q')(y), spec.positions, text.rope_theta)
            k = rope(Linear('BTD,DKH->BTKH', s, name='k')(y), spec.positions, text.rope_theta)
            v = Linear('BTD,DKH->BTKH', s, name='v')(y)
        kv = (k, v)
        if cached:
            kv = write_to_cache(cached[0], k, spec.offset), write_to_cache(cached[1], v, spec.offset)
        if spec.offset is not None:
            k, v = kv
        weights = None
        if spec.return_weights:
            y, weights = attention_with_weights(q, k, v, causal=True, offset=spec.offset, mask=spec.mask)
        else:
            y = attend(
                q, k, v, causal=True, offset=spec.offset, mask=spec.mask, implementation=self.cfg.attention
            )
        x += Linear('BTNH,NHD->BTD', s, name='o')(y)
        y = RMSNorm(s['D'], text.eps, name='mlp_norm')(x)
        if self.has_variable('params', 'gate_up'):
            gate, up = jnp.moveaxis(Linear('BTD,DXF->BTXF', {**s, 'X': 2}, name='gate_up')(y), 2, 0)
        else:
            gate, up = Linear('BTD,DF->BTF', s, name='gate')(y), Linear('BTD,DF->BTF', s, name='up')(y)
        return x + Linear('BTF,FD->BTD', s, name='down')(jax.nn.silu(gate) * up), kv, weights


class Llama(nn.Module):
    """Embeddings BTD -> the hidden states BTD of every layer, the cache, the attention weights."""

    cfg: Config

    def setup(self) -> None:
        text = self.cfg.text
        self.embed = Embed(text.sizes)
        self.layers = [Layer(self.cfg) for _ in range(text.layers)]
        self.norm = RMSNorm(text.width, text.eps)
        if not text.tied:
            self.head = Linear('BTD,DV->BTV', text.sizes)

    def __call__(
        self, x: Array, spec: AttentionSpec, cache: Cache | None = None
    ) -> tuple[list[Array], Cache, list[Array | None]]:
        """x BTD -> L+1 hidden states, the last after the final norm; a cache; attention weights BNTS or None.

        Without a cache, the returned cache holds exactly the T tokens of x.
        """
        states, filled, weights = [x], [], []
        for i, layer in enumerate(self.layers):
            x, kv, w = layer(x, spec, (cache.k[i], cache.v[i]) if cache else None)
            states.append(x)
            filled.append(kv)
            weights.append(w)
        states[-1] = self.norm(x)
        k, v = zip(*filled, strict=True)
        return states, Cache(k, v), weights

    def logits(self, x: Array) -> Array:
        """Hidden states BTD after the final norm -> float32 logits BTV."""
        return self.embed.logits(x) if self.cfg.text.tied else self.head(x, jnp.float32)


def write_to_cache(cached: Array, new: Array, offset: Array | None) -> Array:
    """Writes keys or values BTKH into the slots from `offset` B on of a cache BSKH -> the cache.

    None is slot 0 for all rows; T must then be at most S. Otherwise, what lies past the last slot is dropped.
    """
    if offset is None:
        return jax.lax.dynamic_update_slice(cached, new, (0, 0, 0, 0))
    B, T = new.shape[:2]
    slots = offset.reshape(-1, 1) + jnp.arange(T)
    return cached.at[jnp.arange(B)[:, None], slots].set(new, mode='drop')


def fuse(layer: dict[str, Any]) -> dict[str, Any]:
    """Joins q, k, v of a layer's params into one weight DXKH and gate, up into one DXF, for larger products.

    The axes K and F stay intact, so that they can be sharded. A layer with LoRA is returned unchanged,
    because the adapters of the joined weights differ.
    """
    if any(isinstance(part.get('w'), LoRA) for part in layer.values()):
        return layer
    layer = dict(layer)
    q, k, v, gate, up = (layer.pop(name)['w'] for name in ('q', 'k', 'v', 'gate', 'up'))

    def join(q: Array, k: Array, v: Array) -> Array:
        D, K, H = k.shape
        return jnp.concatenate([q.reshape(D, K, -1, H).swapaxes(1, 2), k[:, None], v[:, None]], axis=1)

    gate_up = rearrange(lambda *ws: jnp.stack(ws, axis=1), gate, up)
    return {**layer, 'qkv': {'w': rearrange(join, q, k, v)}, 'gate_up': {'w': gate_up}}


def reads(path: str) -> str:
    """The first weight that has the same input as this one, by path: '…/layers_0/v/w' -> '…/layers_0/q'."""
    layer, name, _ = path.rsplit('/', 2)
    first = {'k': 'q', 'v': 'q', 'up': 'gate'}
    return f'{layer}/{first.get(name, name)}'


def summed(path: str) -> int:
    """The path of a weight -> how many leading axes its product contracts: 'llama/layers_0/o/w' -> 2.

    In this example they are N and H. The result is 0 for all weights except those of the decoder's products,
    which are the ones that can be quantized.
    """
    if not (path.startswith('llama/') and path.endswith('/w')):
        return 0
    axes = {'o': 2, **dict.fromkeys(('q', 'k', 'v', 'gate', 'up', 'down', 'head'), 1)}
    return axes.get(path.split('/')[-2], 0)
