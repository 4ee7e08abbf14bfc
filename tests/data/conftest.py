"""Fixtures: a processor for pictures of 28 x 28 pixels, and a folder of pictures."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.makers import noise, write_processor_files
from vipllava_jax.inputs.processor import Processor

settings.register_profile('shared machine', deadline=None, database=None)
settings.load_profile('shared machine')


@pytest.fixture(scope='session')
def processor(tmp_path_factory) -> Processor:
    folder = tmp_path_factory.mktemp('processor')
    write_processor_files(folder)
    return Processor.load(folder)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder with a.png, 40 x 30 pixels, and b.jpg, 30 x 40."""
    noise(40, 30).save(tmp_path / 'a.png')
    noise(30, 40, seed=1).save(tmp_path / 'b.jpg')
    return tmp_path
