"""A model without weights that is served, and replies to questions that are written by hand."""

import time

import pytest

from tests.weightless import weightless_model
from vipllava_jax.engine.question import encode
from vipllava_jax.engine.reply import Reply
from vipllava_jax.generation.model import Model
from vipllava_jax.protocol.served import Served


@pytest.fixture(scope='session')
def model(tmp_path_factory) -> Model:
    return weightless_model(tmp_path_factory.mktemp('processor'))


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
