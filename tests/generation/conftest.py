"""A shallow config for the generation tests, which do not depend on the depth of the model."""

import pytest

from tests.conftest import SMALL
from tests.conftest import params as params  # created again, for this cfg
from vipllava_jax.config import Config


@pytest.fixture(scope='session')
def cfg() -> Config:
    return SMALL
