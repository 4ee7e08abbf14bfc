"""A shallow config for the benchmark tests, whose results do not depend on the depth of the model."""

import pytest

from tests.conftest import SMALL
from vipllava_jax.config import Config


@pytest.fixture(scope='session')
def cfg() -> Config:
    return SMALL
