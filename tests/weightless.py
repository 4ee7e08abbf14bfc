"""A model without weights, for what happens before and after the computation."""

import dataclasses
from pathlib import Path

from tests.conftest import SMALL
from tests.makers import write_processor_files
from vipllava_jax.generation.model import Model
from vipllava_jax.inputs.processor import Processor


def weightless_model(folder: Path) -> Model:
    """A model with a vocabulary of 400 tokens and a context of 1024, and the files of its processor."""
    image = write_processor_files(folder)
    text = dataclasses.replace(SMALL.text, vocab=400, context=1024)
    cfg = dataclasses.replace(SMALL, text=text, image_token=image, pad=image + 1)
    return Model({}, cfg, Processor.load(folder).for_model(cfg))
