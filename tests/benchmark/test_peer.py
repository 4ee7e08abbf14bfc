"""Both sides of the comparison have the same weights and prompts."""

import jax
import numpy as np
import pytest

import vipllava_jax as vj
from vipllava_jax.benchmark import plan
from vipllava_jax.benchmark.measure import Ours
from vipllava_jax.benchmark.subject import Subject, random_params, silent
from vipllava_jax.benchmark.timing import OURS, measure_line
from vipllava_jax.placement import place

pytestmark = [pytest.mark.parity, pytest.mark.slow]
NEW = 16


@pytest.fixture(scope='module', params=['float32', 'bfloat16'])
def pair(request, cfg):
    import torch

    from vipllava_jax.benchmark import peer

    torch.set_num_threads(1)
    subject = Subject(place(random_params(cfg, request.param), cfg, fuse=True), silent(cfg))
    return subject, peer.copied(subject)


def test_the_peer_has_the_same_weights(pair):
    import torch

    from vipllava_jax.benchmark.peer import Default

    subject, model = pair
    batch = subject.prompt(2, 100)
    with torch.no_grad():
        theirs = model(**Default(subject, model).inputs(batch)).logits.float().numpy()
    forward = jax.jit(vj.forward, static_argnames='cfg')
    ours = np.asarray(forward(subject.params, batch.tokens, batch.images, cfg=subject.cfg))[:, :100]
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < (1e-4 if subject.dtype == 'float32' else 3e-2)


@pytest.mark.parametrize('pair', ['float32'], indirect=True)
def test_both_configurations_give_our_answers(pair):
    from vipllava_jax.benchmark.peer import Compiled, Default

    subject, model = pair
    batch = subject.prompt(2, 100)
    expected = vj.generate(subject.params, batch, cfg=subject.cfg, max_new_tokens=NEW).tokens
    for side in (Default(subject, model), Compiled(subject, model, backend='eager')):
        inputs = side.inputs(batch)
        for _ in range(2):  # a reused cache is reset
            out = side.answer(inputs, NEW, 256)
            np.testing.assert_array_equal(out[:, 100:], expected)


@pytest.mark.parametrize('pair', ['float32'], indirect=True)
def test_the_report_has_lines_of_both_configurations(pair):
    from vipllava_jax.benchmark.peer import Compiled, Default

    subject, model = pair
    sides = {
        OURS: Ours(subject),
        'default': Default(subject, model),
        'compiled': Compiled(subject, model, backend='eager'),
    }
    what = ('vision', 'prefill', 'decode')
    for line in plan.lines(sides, subject.costs, what, (2,), (100,)):
        result = measure_line(line, 1)
        assert ('compiled' in result.sides) == (line.what == 'decode')
        for name, side in result.sides.items():
            assert not side.fault, (str(line), name, side.fault)
            assert side.median > 0
