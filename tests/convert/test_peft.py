"""Our adapters loaded by peft, and peft's loaded by us, give the same logits on a tiny random model."""

import copy

import jax
import numpy as np
import pytest

import vipllava_jax as vj
from tests import peer
from tests.rows import ragged
from tests.training.test_lora import trained
from vipllava_jax.convert.adapter_export import save_adapter
from vipllava_jax.loading import load

ROWS = [(9, 2), (6, 0), (15, 1)]
forward = jax.jit(vj.forward, static_argnames='cfg')
pytestmark = [
    pytest.mark.parity,
    # peft uses deprecated arguments of transformers
    pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers'),
]


@pytest.fixture(scope='module')
def base(cfg, tmp_path_factory):
    """A transformers model, and its folder."""
    theirs = peer.model(cfg)
    folder = tmp_path_factory.mktemp('peer') / 'base'
    theirs.save_pretrained(folder)
    return theirs, folder


def agree(theirs, ours, cfg, base, rng):
    """Checks that peft's model and our params give the same logits, which differ from the base's."""
    batch = ragged(cfg, rng, ROWS)
    real = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    expected = peer.run(theirs.eval(), batch).logits.numpy()[real]
    for params in ours:
        y = forward(params, batch.tokens, batch.images, image_counts=batch.image_counts, cfg=cfg)
        np.testing.assert_allclose(y[real], expected, atol=2e-4)
    assert np.abs(expected - peer.run(base, batch).logits.numpy()[real]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('projector', [False, True])
def test_peft_loads_what_we_save(base, tmp_path, rng, projector):
    from peft import PeftModel

    theirs, folder = base
    params, cfg, *_ = load(folder, fuse=False)
    adapted = trained(params, cfg, rank=3, alpha=8)
    if projector:
        adapted['projector'] = jax.tree.map(lambda w: w + 0.1, adapted['projector'])
    save_adapter(tmp_path / 'a', adapted, cfg, projector=projector)
    loaded = PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path / 'a')
    agree(loaded, [adapted, load(folder, adapter=tmp_path / 'a').params], cfg, theirs, rng)


EVERYWHERE = dict(target_modules='all-linear', r=4, lora_alpha=6, use_rslora=True)
PATTERNS = dict(
    target_modules=['q_proj', 'up_proj', 'fc1', 'lm_head'],
    r=2,
    rank_pattern={r'layers\.1\.self_attn\.q_proj': 3},
    alpha_pattern={'up_proj': 5},
    modules_to_save=['multi_modal_projector'],
)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Setting `save_embedding_layers` to `True`:UserWarning:peft')  # the head
@pytest.mark.parametrize('settings', [EVERYWHERE, PATTERNS], ids=['everywhere', 'patterns'])
def test_we_load_what_peft_saves(base, tmp_path, rng, settings):
    import torch
    from peft import LoraConfig, get_peft_model

    theirs, folder = base
    adapted = get_peft_model(copy.deepcopy(theirs), LoraConfig(**settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for w in adapted.parameters():
            if w.requires_grad:
                w.add_(torch.randn_like(w) * 0.2)
    adapted.save_pretrained(tmp_path / 'a')
    merged, separate = (load(folder, adapter=tmp_path / 'a', merge=merge) for merge in (True, False))
    agree(adapted, [merged.params, separate.params], merged.cfg, theirs, rng)
