"""Fixtures: a very small model, a processor, and a model and rows on disk with the keys of a short run."""

import pytest

from tests.conftest import SMALL
from tests.conftest import params as params  # created again, for this cfg
from tests.data.conftest import processor as processor  # and its profile of hypothesis
from tests.training import runs
from vipllava_jax.config import Config


@pytest.fixture(scope='session')
def cfg() -> Config:
    return SMALL


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    """A model, and the folder of its rows."""
    return runs.world(tmp_path_factory.mktemp('world'))


@pytest.fixture
def keys(world, tmp_path):
    """The settings of a run of four steps."""
    model, folder = world
    given = dict(model=model, data=folder / 'rows.jsonl', output=tmp_path / 'run', batch=4, workers=0)
    return dict(**given, recipe='projector', steps=4, learning_rate=1e-3, warmup=0.0)
