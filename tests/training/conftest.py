"""A model even smaller, because a step takes long to compile."""

import dataclasses

import jax
import pytest

from tests.conftest import TINY
from vipllava_jax.config import Config

SMALL = dataclasses.replace(
    TINY,
    vision=dataclasses.replace(TINY.vision, layers=3),
    text=dataclasses.replace(TINY.text, layers=2),
    feature_layers=(-2, -3, 3),
)


@pytest.fixture(scope='session')
def cfg() -> Config:
    return SMALL


@pytest.fixture(scope='session')
def params(cfg):
    from vipllava_jax.model.vipllava import init

    return init(jax.random.key(0), cfg)
