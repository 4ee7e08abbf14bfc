"""Fixtures for converting in both directions."""

import jax
import pytest


@pytest.fixture(scope='session')
def model(folder):
    """The converted model with a nonzero adapter, and a projector that differs from the folder's."""
    from tests.training.test_lora import trained
    from vipllava_jax.loading import load

    params, cfg, *_ = load(folder, fuse=False)
    tuned = trained(params, cfg, rank=3, alpha=8, dropout=0.1)
    return {**tuned, 'projector': jax.tree.map(lambda w: w + 1, tuned['projector'])}, cfg


@pytest.fixture(scope='session')
def adapter(model, tmp_path_factory):
    """The adapter and projector of `model`, saved in a folder."""
    from vipllava_jax.convert.adapter_export import save_adapter

    target = tmp_path_factory.mktemp('adapters') / 'adapter'
    save_adapter(target, *model, projector=True, base='somebody/model')
    return target
