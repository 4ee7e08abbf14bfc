"""A model for chats, of random weights, whose answers are rarely the tokens of their own text."""

import dataclasses

import jax
import numpy as np
import pytest

import vipllava_jax as vj
from tests.conftest import SMALL
from tests.makers import write_processor_files
from vipllava_jax.inputs.processor import Processor

SETTINGS = vj.GenerationSettings(max_new_tokens=20, temperature=1.0, seed=5)


@pytest.fixture(scope='session')
def model(folder) -> vj.Model:
    text = dataclasses.replace(SMALL.text, vocab=400, context=1024)
    processor = Processor.load(folder)
    cfg = dataclasses.replace(SMALL, text=text, image_token=processor.image_id, pad=processor.image_id + 1)
    rng = np.random.default_rng(0)

    def weight(x: jax.ShapeDtypeStruct) -> np.ndarray:
        """Normal with a variance near 1 / fan-in, and 1 for gains; `init` would take seconds to compile."""
        return np.float32(
            rng.normal(size=x.shape) / (x.size / x.shape[-1]) ** 0.5 if x.ndim > 1 else np.ones(x.shape)
        )

    params = jax.device_put(jax.tree.map(weight, vj.abstract(cfg)), jax.local_devices()[0])
    return vj.Model(params, cfg, processor.for_model(cfg), SETTINGS)


@pytest.fixture(scope='session')
def processor(tmp_path_factory) -> Processor:
    files = tmp_path_factory.mktemp('processor')
    write_processor_files(files)
    return Processor.load(files)
