"""A folder with the files of a tiny processor."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.makers import write_processor_files
from vipllava_jax.inputs.processor import Processor

settings.register_profile('shared machine', deadline=None, database=None)
settings.load_profile('shared machine')


@pytest.fixture(scope='session')
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('processor')
    write_processor_files(folder)
    return folder


@pytest.fixture(scope='session')
def processor(tokenizer_folder) -> Processor:
    return Processor.load(tokenizer_folder)
