"""An engine on a mesh gives the answers of one device."""

import jax
import numpy as np
import pytest

from tests.compilations import compilations
from tests.engine.formats import formatted_questions
from tests.engine.random_questions import expected, random_question
from tests.engine.test_orders import ask
from vipllava_jax.placement import place
from vipllava_jax.sharding import make_mesh

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope='module')
def questions():
    rng = np.random.default_rng(3)
    return [*(random_question(rng, 80) for _ in range(24)), *formatted_questions(6)]


@pytest.fixture(scope='module')
def wanted(start, questions):
    with start() as engine:
        return [expected(engine.submit(question).result(60)) for question in questions]


@pytest.mark.parametrize(
    'axes',
    [
        pytest.param({'data': 2, 'tensor': 2}, marks=pytest.mark.slow),
        pytest.param({'tensor': 2}, marks=pytest.mark.by_hand),
        pytest.param({'data': 2}, marks=pytest.mark.by_hand),
    ],
    ids=str,
)
def test_answers_are_those_of_one_device(start, small_model, questions, wanted, axes):
    mesh = make_mesh(axes, devices=jax.devices()[:4])
    copied = jax.tree.map(lambda x: x, small_model.params)  # whose dicts `place` changes
    model = small_model._replace(params=place(copied, small_model.cfg, fuse=False, mesh=mesh))
    rng = np.random.default_rng(4)
    with start(model) as engine:
        with compilations('') as compiled:
            for _ in range(2):
                replies = ask(engine, questions, rng)
                for question, reply, answers in zip(questions, replies, wanted, strict=True):
                    assert expected(reply.result(120)) == answers, question
        assert compiled == []
        assert engine.stats().compilations == 0
