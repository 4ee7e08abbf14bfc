"""Adapters: their places and effect, training like peft's, and merging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests import peer
from tests.rows import ragged
from vipllava_jax.arrays import flat, nested
from vipllava_jax.generation.decoding import generate
from vipllava_jax.model import fused
from vipllava_jax.model.weights import LoRA
from vipllava_jax.quantizing import quantize_leaves
from vipllava_jax.training import lora

ROWS = [(9, 2), (6, 0), (15, 1)]
READ = [('q', 'k', 'v'), ('o',), ('gate', 'up'), ('down',)]  # products that share an input
forward = jax.jit(vj.forward, static_argnames='cfg')


def trained(params, cfg, *, rank=4, alpha=8.0, std=0.1, **settings):
    """Params with a nonzero adapter."""
    adapted = lora.add(params, cfg, rank=rank, alpha=alpha, key=jax.random.key(1), **settings)
    rng = np.random.default_rng(0)
    moved = (
        (p, w.replace(b=jnp.float32(rng.normal(0, std, w.b.shape))) if isinstance(w, LoRA) else w)
        for p, w in flat(adapted)
    )
    return nested(moved)


def adapters(params) -> dict[str, LoRA]:
    return {path: leaf for path, leaf in flat(params) if isinstance(leaf, LoRA)}


@pytest.mark.parametrize('targets', [lora.TARGETS, ('q', 'v'), ('q_proj', 'v_proj'), ('gate', 'down_proj')])
def test_a_new_adapter_is_on_its_targets_and_changes_no_result(cfg, params, rng, targets):
    adapted = lora.add(params, cfg, rank=4, alpha=8, key=jax.random.key(1), targets=targets)
    names = {name.removesuffix('_proj') for name in targets}
    found = adapters(adapted)
    assert found.keys() == {f'llama/layers_{i}/{n}/w' for i in range(cfg.text.layers) for n in names}
    for path, w in found.items():
        assert w.scale == 2
        assert w.a.dtype == w.b.dtype == jnp.float32
        assert w.a.shape[:-1] + w.b.shape[1:] == w.shape == dict(flat(params))[path].shape
        assert w.a.shape[-1] == w.b.shape[0] == 4
        # like peft: Kaiming's uniform initialization with a = 5 ** 0.5
        bound = np.prod(w.a.shape[:-1]) ** -0.5
        assert 0.9 * bound < jnp.abs(w.a).max() <= bound
        assert abs(w.a.std() / (bound / 3**0.5) - 1) < 0.2
        assert not w.b.any()
    tokens = rng.integers(3, cfg.image_token, (2, 9))
    np.testing.assert_array_equal(forward(adapted, tokens, cfg=cfg), forward(params, tokens, cfg=cfg))
    assert len({w.a.tobytes() for w in map(jax.device_get, found.values())}) == len(found)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'targets': ['q', 'head', 'fc1']}, 'unknown targets: head, fc1; expected some of q, k, v'),
        ({'targets': []}, 'needs a target'),
        ({'rank': 0}, 'a rank of 1 or more'),
        ({'dropout': 1.0}, 'a dropout of at least 0 and below 1'),
    ],
)
def test_invalid_settings_are_refused(cfg, params, settings, message):
    with pytest.raises(ValueError, match=message):
        lora.add(params, cfg, **{'rank': 4, 'alpha': 8, 'key': jax.random.key(0), **settings})


def test_fused_and_adapted_weights_are_refused(cfg, params):
    layers = {
        name: fused.fuse(part) if name.startswith('layers_') else part
        for name, part in params['llama'].items()
    }
    for weights, message in (
        ({**params, 'llama': layers}, 'fused'),
        (trained(params, cfg), 'merge it before'),
    ):
        with pytest.raises(ValueError, match=message):
            lora.add(weights, cfg, rank=4, alpha=8, key=jax.random.key(0))


@pytest.mark.slow
def test_merging_does_not_change_the_answers(cfg, params, rng):
    adapted = trained(params, cfg)
    merged = lora.merge(adapted)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    batch = ragged(cfg, rng, ROWS)
    inputs = (batch.tokens, batch.images)
    a = forward(adapted, *inputs, image_counts=batch.image_counts, cfg=cfg)
    b = forward(merged, *inputs, image_counts=batch.image_counts, cfg=cfg)
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert jnp.abs(a - forward(params, *inputs, image_counts=batch.image_counts, cfg=cfg)).max() > 0.1
    for path, w in flat(merged):
        assert w.dtype == dict(flat(params))[path].dtype
    tokens = [generate(tree, batch, cfg=cfg, max_new_tokens=16, eos=()).tokens for tree in (adapted, merged)]
    np.testing.assert_array_equal(*tokens)


def test_bfloat16_is_merged_in_float32_and_rounded_once(cfg, params):
    half = trained(jax.tree.map(lambda w: w.astype(jnp.bfloat16), params), cfg)
    merged = dict(flat(lora.merge(half)))
    for path, w in adapters(half).items():
        exact = np.float64(w.base) + 2 * np.tensordot(np.float64(w.a), np.float64(w.b), 1)
        np.testing.assert_allclose(np.float64(merged[path]), exact, rtol=2**-8)
        assert merged[path].dtype == jnp.bfloat16


@pytest.mark.slow
def test_an_adapter_works_on_int8_weights_but_is_not_merged_into_them(cfg, params, rng):
    small = nested(quantize_leaves(flat(params), 'int8'))
    adapted = trained(small, cfg)
    assert adapters(adapted).keys() == adapters(trained(params, cfg)).keys()
    batch = ragged(cfg, rng, ROWS)
    inputs = dict(images=batch.images, image_counts=batch.image_counts, cfg=cfg)
    a, b, plain = (forward(tree, batch.tokens, **inputs) for tree in (adapted, trained(params, cfg), small))
    assert jnp.linalg.norm(a - b) < 0.03 * jnp.linalg.norm(b)
    assert jnp.linalg.norm(a - plain) > 0.1 * jnp.linalg.norm(b)
    with pytest.raises(ValueError, match=r'llama/layers_0/\w+/w: an adapter cannot be merged into int8'):
        lora.merge(adapted)


@pytest.mark.parametrize('int_dtype', ['int8', 'int4'])
def test_an_adapter_on_quantized_weights_has_gradients(int_dtype, cfg, params, rng):
    adapted = trained(nested(quantize_leaves(flat(params), int_dtype)), cfg)
    pairs = {path: (w.a, w.b) for path, w in adapters(adapted).items()}
    tokens = rng.integers(3, cfg.image_token, (2, 9))

    def loss(pairs):
        leaves = ((p, w.replace(a=pairs[p][0], b=pairs[p][1]) if p in pairs else w) for p, w in flat(adapted))
        return -jax.nn.log_softmax(vj.forward(nested(leaves), tokens, cfg=cfg))[..., 5].mean()

    both = jax.jit(jax.value_and_grad(loss))
    before, grads = both(pairs)
    assert all(g.any() for g in jax.tree.leaves(grads))
    assert both(jax.tree.map(lambda w, g: w - 0.1 * g, pairs, grads))[0] < before


def test_dropout_applies_to_the_inputs_of_adapters_and_only_with_a_key(cfg, params, rng):
    adapted = trained(params, cfg, dropout=0.5)
    tokens = rng.integers(3, cfg.image_token, (2, 9))
    plain = forward(trained(params, cfg), tokens, cfg=cfg)
    np.testing.assert_array_equal(forward(adapted, tokens, cfg=cfg), plain)
    one, same, other = (lora.with_dropout(adapted, jax.random.key(i)) for i in (1, 1, 2))
    keys: dict[bytes, set[str]] = {}
    for path, w in adapters(one).items():
        keys.setdefault(jax.random.key_data(w.key).tobytes(), set()).add(path.removesuffix('/w'))
    alike = [{f'llama/layers_{i}/{n}' for n in ns} for i in range(cfg.text.layers) for ns in READ]
    assert sorted(map(sorted, keys.values())) == sorted(map(sorted, alike))
    a, b, c = (forward(tree, tokens, cfg=cfg) for tree in (one, same, other))
    np.testing.assert_array_equal(a, b)
    assert jnp.abs(a - c).max() > 0.01
    assert jnp.abs(a - plain).max() > 0.01
    np.testing.assert_array_equal(
        dict(flat(lora.merge(one)))['llama/layers_0/q/w'],
        dict(flat(lora.merge(adapted)))['llama/layers_0/q/w'],
    )


class Adapted:
    """peft's computation for a linear layer, y = x W + scale (x A) B, as a hook on torch's layer."""

    def __init__(self, layer, w: LoRA):
        import torch

        self.a = torch.tensor(np.asarray(w.a).reshape(-1, w.a.shape[-1]), requires_grad=True)  # in R
        self.b = torch.tensor(np.asarray(w.b).reshape(w.b.shape[0], -1), requires_grad=True)  # R out
        layer.register_forward_hook(lambda _, x, y: y + w.scale * (x[0] @ self.a) @ self.b)


@pytest.mark.parity
def test_loss_and_gradients_equal_those_of_torch(cfg, tmp_path, rng):
    import torch

    theirs = peer.model(cfg).requires_grad_(False)
    theirs.save_pretrained(tmp_path / 'peer')
    adapted = trained(vj.load(tmp_path / 'peer').params, cfg)
    modules = {'q': 'self_attn', 'k': 'self_attn', 'v': 'self_attn', 'o': 'self_attn'}
    hooked = {}
    for path, w in adapters(adapted).items():
        _, layer, name, _ = path.split('/')
        block = getattr(
            theirs.model.language_model.layers[int(layer.removeprefix('layers_'))], modules.get(name, 'mlp')
        )
        hooked[path] = Adapted(getattr(block, f'{name}_proj'), w)
    batch = ragged(cfg, rng, ROWS)
    learnt = np.arange(batch.tokens.shape[1] - 1) < batch.lengths[:, None] - 1
    learnt &= batch.tokens[:, 1:] != cfg.image_token

    logits = theirs(
        input_ids=torch.tensor(batch.tokens, dtype=torch.long), pixel_values=peer.pixel_values(batch)
    ).logits[:, :-1]
    targets = torch.tensor(np.where(learnt, batch.tokens[:, 1:], -100), dtype=torch.long)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    expected.backward()

    def loss(pairs):
        leaves = ((p, w.replace(a=pairs[p][0], b=pairs[p][1]) if p in pairs else w) for p, w in flat(adapted))
        logits = vj.forward(
            nested(leaves), batch.tokens, batch.images, image_counts=batch.image_counts, cfg=cfg
        )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), batch.tokens[:, 1:, None], axis=-1)
        return -jnp.sum(chosen[..., 0] * learnt) / learnt.sum()

    pairs = {path: (w.a, w.b) for path, w in adapters(adapted).items()}
    found, grads = jax.jit(jax.value_and_grad(loss))(pairs)
    assert abs(found - expected.item()) < 1e-5
    for path, (a, b) in grads.items():
        for ours, theirs in ((a, hooked[path].a.grad), (b, hooked[path].b.grad)):
            error = np.linalg.norm(np.asarray(ours).reshape(theirs.shape) - theirs.numpy())
            assert error < 1e-4 * np.linalg.norm(theirs.numpy()), path
