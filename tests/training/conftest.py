"""Fixtures: a very small model, its weights, and the processor of the tests of data."""

import pytest

from tests.conftest import SMALL
from tests.conftest import params as params  # created again, for this cfg
from tests.data.conftest import processor as processor
from vipllava_jax.config import Config


@pytest.fixture(scope='session')
def cfg() -> Config:
    return SMALL
