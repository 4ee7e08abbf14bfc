"""Training agrees with transformers and torch in float32: loss, gradients, twenty steps of AdamW."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import peer
from tests.conftest import SMALL, TINY
from tests.rows import examples, ragged, stack
from tests.training.optimizers import optimizer
from vipllava_jax.arrays import flat, nested
from vipllava_jax.convert.table import hub_name, leaves, rearrange_axes
from vipllava_jax.data.conversations import IGNORE
from vipllava_jax.inputs.batch import Batch
from vipllava_jax.training.loss import loss
from vipllava_jax.training.parts import split
from vipllava_jax.training.settings import TrainingSettings
from vipllava_jax.training.step import init_state, make_step

pytestmark = pytest.mark.parity
ROWS = [(9, 2), (6, 0), (15, 1), (7, 3)]
STEPS = 20
TIED = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, tied=True))
CLIP, PROJECTOR = 'vision_tower.', 'multi_modal_projector.'


def ours(theirs, cfg, of=lambda w: w):
    """The peer's weights, or their gradients, as our params; zeros where there are none."""
    tensors = {hub_name(name): of(w) for name, w in theirs.named_parameters()}
    arrays = {
        leaf.path: np.zeros(leaf.shapes[0], np.float32)
        if tensors[leaf.name] is None
        else tensors[leaf.name].detach().numpy().copy()
        for leaf in leaves(cfg)
    }
    return nested(
        (leaf.path, rearrange_axes(arrays[leaf.path], leaf.layout, dict(leaf.sizes))) for leaf in leaves(cfg)
    )


def summed_loss(theirs, batch: Batch, cfg):
    """The peer's loss as a sum over the targets of `examples`, and their number."""
    import torch

    targets = examples(batch, cfg).targets
    labels = np.pad(targets, ((0, 0), (1, 0)), constant_values=IGNORE)[:, :-1]
    mask = np.arange(labels.shape[1]) < batch.lengths[:, None]
    mean = theirs(
        input_ids=torch.tensor(batch.tokens, dtype=torch.long),
        attention_mask=torch.tensor(mask, dtype=torch.long),
        pixel_values=peer.pixel_values(batch),
        labels=torch.tensor(labels, dtype=torch.long),
    ).loss
    count = int((targets != IGNORE).sum())
    return mean * count, count


@pytest.mark.parametrize(
    ('cfg', 'remat'),
    [
        pytest.param(TINY, 'none', id='none', marks=pytest.mark.by_hand),
        pytest.param(SMALL, 'products', id='products'),
        pytest.param(TIED, 'layers', id='layers, tied'),
    ],
)
def test_the_loss_and_every_gradient_agree(cfg, remat, rng, monkeypatch):
    monkeypatch.setattr('vipllava_jax.training.loss.AT_ONCE', 30 * cfg.text.vocab)  # several pieces
    theirs, batch = peer.model(cfg), ragged(cfg, rng, ROWS)
    total, count = summed_loss(theirs, batch, cfg)
    (total / count).backward()

    def mean(params):
        total, count = loss(params, examples(batch, cfg), cfg, remat)
        return total / count

    value, gradient = jax.jit(jax.value_and_grad(mean))(ours(theirs, cfg))
    assert abs(value - (total / count).item()) < 1e-5
    expected = dict(flat(ours(theirs, cfg, lambda w: w.grad)))
    norm = np.sqrt(sum(np.sum(g * g) for g in expected.values()))
    for path, g in flat(gradient):
        # a shift of all keys does not change attention, so the gradient of their bias is only rounding errors
        none = 1e-6 * norm if path.endswith('k/b') else 0
        assert np.linalg.norm(g - expected[path]) <= 1e-4 * np.linalg.norm(expected[path]) + none, path


@pytest.mark.slow
@pytest.mark.parametrize(
    ('trains', 'settings', 'accumulated'),
    [
        pytest.param({'projector'}, {}, 2, id='projector'),
        pytest.param(
            {'projector', 'llama'}, dict(weight_decay=0.1), 1, id='decay', marks=pytest.mark.by_hand
        ),
        pytest.param(
            {'vision', 'projector', 'llama'},
            dict(projector_rate=1e-3, clip_norm=1.0),
            2,
            id='rates and clipping',
        ),
    ],
)
def test_twenty_steps_of_adamw_agree(trains, settings, accumulated, rng):
    cfg = SMALL
    o = optimizer(3e-3, STEPS, warmup=0.1, **settings)
    theirs = peer.model(cfg)
    trainable, frozen = split(ours(theirs, cfg), trains)
    state, step = init_state(trainable, o), make_step(cfg, o, dtype=jnp.float32)
    rows = [[(9, 2), (15, 1)], [(5, 0), (8, 0)], [(20, 1), (7, 2)], [(6, 0), (9, 2)]]
    batches = [ragged(cfg, rng, pair, T=32) for pair in rows]  # one has no image at all
    losses_so_far = []
    descent = torch_steps(theirs, o.settings, trains)
    for i in range(STEPS):
        some = [batches[(i * accumulated + j) % len(batches)] for j in range(accumulated)]
        losses = [summed_loss(theirs, batch, cfg) for batch in some]
        expected = sum(total for total, _ in losses) / sum(count for _, count in losses)
        state, metrics = step(state, frozen, stack([examples(b, cfg) for b in some]), jax.random.key(0))
        assert metrics.finite
        assert abs(metrics.loss - expected.item()) < 1e-4, i
        norm, rate = descent(expected)
        np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-3)
        np.testing.assert_allclose(metrics.learning_rate, rate, rtol=1e-5)
        losses_so_far.append(metrics.loss)
    assert losses_so_far[16] < losses_so_far[0] - 0.01  # on the same batches


def torch_steps(theirs, s: TrainingSettings, trains):
    """A function that updates the peer's weights by a loss; it returns the gradient's norm and the rate."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    groups = []
    trained = []
    for name, w in theirs.named_parameters():
        name = hub_name(name)
        part = 'vision' if name.startswith(CLIP) else 'projector' if name.startswith(PROJECTOR) else 'llama'
        w.requires_grad_(part in trains)
        if part in trains:
            trained.append(w)
            plain = name.endswith('.bias') or 'norm' in name
            rate = s.projector_rate if part == 'projector' and s.projector_rate else s.learning_rate
            groups.append(dict(params=[w], lr=rate, weight_decay=0.0 if plain else s.weight_decay))
    # the returned rate is that of the first group
    groups.sort(key=lambda group: group['lr'] != s.learning_rate)
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_cosine_schedule_with_warmup(adam, int(np.ceil(s.warmup * s.steps)), s.steps)

    def move(total):
        adam.zero_grad()
        if total.requires_grad:
            total.backward()
        for w in trained:  # torch would skip weights that a text-only batch does not use
            w.grad = torch.zeros_like(w) if w.grad is None else w.grad
        norm = torch.nn.utils.clip_grad_norm_(trained, s.clip_norm or float('inf')).item()
        rate = schedule.get_last_lr()[0]
        adam.step()
        schedule.step()
        return norm, rate

    return move
