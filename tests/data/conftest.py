"""Fixtures: the processor, pictures and model of the training tests."""

from tests.training.conftest import cfg as cfg
from tests.training.conftest import params as params
from tests.training.conftest import pictures as pictures
from tests.training.conftest import processor as processor
