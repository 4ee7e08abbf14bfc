"""A model for chats, of random weights, whose answers are rarely the tokens of their own text."""

import dataclasses

import jax
import pytest

import vipllava_jax as vj
from tests.conftest import SMALL
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.model.params import init

SETTINGS = vj.GenerationSettings(max_new_tokens=20, temperature=1.0, seed=5)


@pytest.fixture(scope='session')
def model(folder) -> vj.Model:
    text = dataclasses.replace(SMALL.text, vocab=400, context=1024)
    processor = Processor.load(folder)
    cfg = dataclasses.replace(SMALL, text=text, image_token=processor.image_id, pad=processor.image_id + 1)
    return vj.Model(init(jax.random.key(0), cfg), cfg, processor.for_model(cfg), SETTINGS)
