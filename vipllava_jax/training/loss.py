"""The training loss: the cross entropy of the target tokens."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from vipllava_jax.config import Config
from vipllava_jax.data.conversations import IGNORE
from vipllava_jax.data.examples import Examples
from vipllava_jax.model.layers import RMSNorm
from vipllava_jax.model.llama import AttentionSpec, Layer
from vipllava_jax.model.vipllava import Params, VipLlava
from vipllava_jax.sharding import mesh_of, spec
from vipllava_jax.training.recipes import REMATS

AT_ONCE = 2**25  # logits in memory at the same time, 134 MB in float32
SAVED = {
    'none': jax.checkpoint_policies.everything_saveable,
    'products': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'layers': jax.checkpoint_policies.nothing_saveable,
}


def loss(params: Params, batch: Examples, cfg: Config, remat: str = 'none') -> tuple[Array, Array]:
    """The sum of the cross entropies of a batch's target tokens, float32, and their number, int32.

    `remat` selects what the forward pass saves of a decoder layer for the backward pass: 'none' saves
    everything, 'products' only the results of matrix products, 'layers' only the layer's input; the rest is
    recomputed.
    """
    x = hidden(params, batch, cfg, remat)
    with jax.named_scope('cross_entropy'):
        return cross_entropy(params, x, jnp.asarray(batch.targets), cfg), jnp.sum(batch.targets != IGNORE)


def hidden(params: Params, batch: Examples, cfg: Config, remat: str) -> Array:
    """A batch -> the decoder's last hidden states BTD, after the final norm; `remat` is that of `loss`."""
    if remat not in REMATS:
        raise ValueError(f'remat is {remat!r}, but must be one of {", ".join(REMATS)}')
    model, variables = VipLlava(cfg), {'params': params}
    features = model.apply(variables, batch.images, method='features') if batch.images.shape[1] else None
    embed = params['llama']['embed']
    in_float32 = {'params': {'llama': {'embed': _in_float32(embed)}}}
    x: Any = model.apply(in_float32, batch.tokens, features, method='embed')
    x = x.astype(embed['w'].dtype)
    attention = AttentionSpec(jnp.arange(x.shape[1])[None])

    def layer(params: Params) -> Callable[[Array], Array]:
        # Params are closed over: if they were an argument of `jax.checkpoint`, a dropout key that adapters
        # share would be saved, and hashed, once for each of them.
        def run(x: Array) -> Any:
            return Layer(cfg).apply({'params': params}, x, attention, None)[0]

        return jax.checkpoint(run, policy=SAVED[remat])

    for i in range(cfg.text.layers):
        with jax.named_scope(f'layers_{i}'):
            x = layer(params['llama'][f'layers_{i}'])(x)
    norm: Any = RMSNorm('D', cfg.text.sizes, cfg.text.eps).apply({'params': params['llama']['norm']}, x)
    return norm


def cross_entropy(params: Params, x: Array, targets: Array, cfg: Config) -> Array:
    """The sum over the target tokens for hidden states x BTD, computed AT_ONCE logits at a time.

    On a mesh each device computes that of its own rows, so that the head is gathered, and its gradient
    added, once and not for every piece.
    """
    name = 'embed' if cfg.text.tied else 'head'
    head = params['llama'][name]
    dtypes = jax.tree.map(lambda w: w.dtype, head)

    def of_rows(wide: Params, x: Array, targets: Array) -> Array:
        return _cross_entropy(name, wide, dtypes, x, targets, cfg)

    mesh, wide = mesh_of(x, head), _in_float32(head)
    axes = () if mesh is None else spec('B', x.shape[:1], mesh)
    if not axes:
        return of_rows(wide, x, targets)
    rows = axes[0] if isinstance(axes[0], tuple) else (axes[0],)
    of_device = jax.shard_map(
        lambda *args: jax.lax.psum(of_rows(*args), rows),
        mesh=mesh,
        in_specs=(PartitionSpec(), axes, axes),
        out_specs=PartitionSpec(),
        axis_names={*rows},  # XLA divides the vocabulary over the others
        check_vma=False,
    )
    return of_device(wide, x, targets)


def _cross_entropy(name: str, wide: Params, dtypes: Any, x: Array, targets: Array, cfg: Config) -> Array:
    """`cross_entropy` with the weights of the head, `name`, in float32; they are used in `dtypes`."""

    def piece(wide: Params, x: Array, targets: Array) -> Array:
        narrow = {'llama': {name: jax.tree.map(lambda w, to: w.astype(to), wide, dtypes)}}
        logits: Any = VipLlava(cfg).apply(
            {'params': narrow}, x, method=lambda model, x: model.llama.logits(x)
        )
        is_target = targets != IGNORE
        ids = jnp.where(is_target, targets, 0)[..., None]
        target_logits = jnp.take_along_axis(logits, ids, axis=-1)[..., 0]
        return jnp.sum(jnp.where(is_target, jax.nn.logsumexp(logits, axis=-1) - target_logits, 0))

    rematerialized = jax.checkpoint(piece, prevent_cse=False)
    T = max(1, AT_ONCE // (len(x) * cfg.text.vocab))
    pieces = _pieces(x, T, 0), _pieces(targets, T, IGNORE)
    total, _ = jax.lax.scan(
        lambda total, xs: (total + rematerialized(wide, *xs), None), jnp.float32(0), pieces
    )
    return total


def _in_float32(params: Params) -> Params:
    """Casts weights that many tokens share to float32, so that their gradient is summed in float32."""
    half = (jnp.bfloat16, jnp.float16)
    return jax.tree.map(lambda w: w.astype(jnp.float32) if w.dtype in half else w, params)


def _pieces(x: Array, size: int, fill: int) -> Array:
    """BT… -> nBt…: each row in pieces of at most `size` tokens, padded with `fill`."""
    B, T = x.shape[:2]
    t = min(T, size)
    x = jnp.pad(x, [(0, 0), (0, -T % t), *[(0, 0)] * (x.ndim - 2)], constant_values=fill)
    return jnp.moveaxis(x.reshape(B, -1, t, *x.shape[2:]), 1, 0)
