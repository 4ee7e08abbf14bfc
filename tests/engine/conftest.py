"""A model without weights, for what happens before and after the computation, and one with weights."""

import dataclasses

import jax
import pytest

import vipllava_jax as vj
from tests.conftest import SMALL
from tests.engine.pictures import SETTINGS
from tests.makers import write_processor_files
from tests.threads import threads_end  # noqa: F401
from vipllava_jax.engine.engine import Engine
from vipllava_jax.engine.pictures import Pictures
from vipllava_jax.inputs.processor import Processor


@pytest.fixture(scope='session')
def model(tmp_path_factory) -> vj.Model:
    files = tmp_path_factory.mktemp('processor')
    image = write_processor_files(files)
    processor = Processor.load(files)
    text = dataclasses.replace(SMALL.text, vocab=400, context=1024)
    cfg = dataclasses.replace(SMALL, text=text, image_token=image, pad=image + 1)
    return vj.Model({}, cfg, processor.for_model(cfg))


@pytest.fixture(scope='module')
def pool():
    with Pictures(SETTINGS, 1) as pool:
        yield pool


@pytest.fixture(scope='session')
def small_model(model) -> vj.Model:
    """The model with random weights, and a context of 512 tokens."""
    text = dataclasses.replace(model.cfg.text, context=512)
    cfg = dataclasses.replace(model.cfg, text=text)
    return vj.Model(vj.init(jax.random.key(0), cfg), cfg, model.processor)


@pytest.fixture(scope='session')
def start(small_model):
    """Starts an engine; all with these numbers of rows and slots run the same programs."""
    rows = {'rows': 4, 'slots': 256, 'long_rows': 2, 'workers': 0}
    return lambda model=small_model, **changes: Engine(model, **{**rows, **changes})
