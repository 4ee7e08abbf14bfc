"""How answers are drawn does not depend on the depth of the model."""

import jax
import pytest

from tests.conftest import SMALL
from vipllava_jax.config import Config


@pytest.fixture(scope='session')
def cfg() -> Config:
    return SMALL


@pytest.fixture(scope='session')
def params(cfg):
    from vipllava_jax.model.vipllava import init

    return init(jax.random.key(0), cfg)
