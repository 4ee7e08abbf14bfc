"""Fixtures: a processor for pictures of 28 x 28 pixels, files of rows, and a very small model."""

import json
from pathlib import Path

import pytest
from hypothesis import settings

from tests.conftest import SMALL
from tests.conftest import params as params  # created again, for this cfg
from tests.makers import noise, write_processor_files
from vipllava_jax.config import Config
from vipllava_jax.inputs.processor import Processor

settings.register_profile('shared machine', deadline=None, database=None)
settings.load_profile('shared machine')

TALK = [
    {'from': 'human', 'value': '<image>\nWhat is <bbox0>?'},
    {'from': 'gpt', 'value': 'A dog.'},
]


@pytest.fixture(scope='session')
def cfg() -> Config:
    return SMALL


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


def region_row(**changes) -> dict:
    row = {'id': 'x-1', 'image': 'a.png', 'bboxes': [[4, 5, 20, 25]], 'conversations': TALK}
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def write_lines(path: Path, rows: list) -> Path:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path
