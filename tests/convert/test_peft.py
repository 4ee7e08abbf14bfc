"""Adapters of ours on transformers' model."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from vipllava_convert import adapters

import vipllava_jax as vj
from tests import peer
from tests.rows import ragged
from tests.training.test_lora import trained
from vipllava_jax.loading import load

ROWS = [(9, 2), (6, 0), (15, 1)]
forward = jax.jit(vj.forward, static_argnames='cfg')


class TestPeer:
    """The same files on transformers' model, by torch alone: W + scale * B A."""

    @pytest.fixture(scope='class')
    @staticmethod
    def theirs(cfg, tmp_path_factory):
        theirs = peer.model(cfg)
        folder = tmp_path_factory.mktemp('peer') / 'base'
        theirs.save_pretrained(folder)
        return theirs, folder

    @pytest.mark.parity
    def test_what_we_save_they_read(self, theirs, tmp_path, rng):
        import re

        import torch

        theirs, base = theirs
        params, cfg, _ = load(base, fuse=False)
        adapted = trained(params, cfg, rank=3, alpha=8)
        adapters.save(tmp_path / 'a', adapted, cfg)
        config = json.loads((tmp_path / 'a' / 'adapter_config.json').read_text())
        tensors = load_file(tmp_path / 'a' / 'adapter_model.safetensors')
        wanted = {name for name, _ in theirs.named_modules() if re.fullmatch(config['target_modules'], name)}
        assert {name.removeprefix('base_model.model.').rsplit('.', 2)[0] for name in tensors} == wanted
        assert len(wanted) == 7 * cfg.text.layers
        batch = ragged(cfg, rng, ROWS)
        real = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
        before = {name: theirs.get_submodule(name).weight.detach().clone() for name in wanted}
        with torch.no_grad():
            for name in wanted:
                a, b = (torch.tensor(tensors[f'base_model.model.{name}.lora_{h}.weight']) for h in 'AB')
                theirs.get_submodule(name).weight += config['lora_alpha'] / config['r'] * b @ a
            expected = peer.run(theirs, batch).logits.numpy()
            for name, w in before.items():
                theirs.get_submodule(name).weight.copy_(w)
        for model in (adapted, load(base, adapter=tmp_path / 'a').params):
            y = forward(model, batch.tokens, batch.images, image_counts=batch.image_counts, cfg=cfg)
            np.testing.assert_allclose(y[real], expected[real], atol=1e-4)
        assert np.abs(expected - peer.run(theirs, batch).logits.numpy())[real].max() > 0.1
