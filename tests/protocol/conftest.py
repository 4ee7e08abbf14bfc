"""A model without weights that is served, and replies to questions that are written by hand."""

import dataclasses
import time

import pytest

import vipllava_jax as vj
from tests.conftest import SMALL
from tests.makers import write_processor_files
from vipllava_jax.engine.question import encode
from vipllava_jax.engine.reply import Reply
from vipllava_jax.inputs.processor import Processor
from vipllava_jax.protocol.served import Served


@pytest.fixture(scope='session')
def model(tmp_path_factory) -> vj.Model:
    files = tmp_path_factory.mktemp('processor')
    image = write_processor_files(files)
    processor = Processor.load(files)
    text = dataclasses.replace(SMALL.text, vocab=400, context=1024)
    cfg = dataclasses.replace(SMALL, text=text, image_token=image, pad=image + 1)
    return vj.Model({}, cfg, processor.for_model(cfg))


@pytest.fixture(scope='session')
def served(model) -> Served:
    return Served('vip', model, created=7)


@pytest.fixture(scope='session')
def reply_to(model):
    """The reply to a question with these ids for each sample, and log-probabilities if it asks for them."""

    def reply_to(question, *samples, entries=None) -> Reply:
        reply = Reply(encode(question, model), model.processor)
        reply.started(len(reply.question.ids), 5)
        for sample, ids in enumerate(samples):
            reply.push(sample, ids, time.perf_counter(), entries)
        return reply

    return reply_to
