"""The benchmark times the library's functions, on random weights without zeros."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vipllava_jax.arrays import flat
from vipllava_jax.benchmark import plan
from vipllava_jax.benchmark.measure import STEPS, Ours, compilation_cache
from vipllava_jax.benchmark.subject import PRESETS, Subject, random_params, silent
from vipllava_jax.benchmark.timing import OURS, measure_line
from vipllava_jax.model.cost import Work
from vipllava_jax.model.input_checks import check_inputs
from vipllava_jax.model.params import abstract
from vipllava_jax.placement import place


@pytest.fixture(scope='module')
def subject(cfg):
    return Subject(random_params(cfg, 'float32'), silent(cfg))


def test_random_params_fit_the_config_and_none_is_zero(cfg, subject):
    def described(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert described(subject.params) == described(abstract(cfg, 'float32'))
    for path, w in flat(subject.params):
        assert np.count_nonzero(w) == w.size, path


def test_prompts_fit_the_model(subject):
    for images in (0, 1, 2):
        batch = subject.prompt(3, 150, images)
        check_inputs(batch.tokens, batch.images, batch.image_counts, subject.cfg)
        assert batch.tokens.shape == (3, 256)
        assert (batch.tokens[:, 150:] == subject.cfg.pad).all()
    with pytest.raises(ValueError, match='no room'):
        subject.prompt(1, 5)


def test_fusing_keeps_every_weight(subject):
    copy = jax.tree.map(jnp.array, subject.params)
    joined = Subject(place(copy, subject.cfg, fuse=True), subject.cfg)
    assert 'qkv' in joined.params['llama']['layers_0']
    ours, expected = dict(joined.leaves()), dict(subject.leaves())
    assert ours.keys() == expected.keys() == dict(flat(subject.params)).keys()
    for path, w in expected.items():
        np.testing.assert_array_equal(ours[path], w)
    assert joined.weight == subject.weight == 4


@pytest.mark.slow
def test_every_line_is_measured(subject):
    what = ('compile', 'vision', 'prefill', 'first-token', 'decode', 'generate')
    sides = {OURS: Ours(subject)}
    with compilation_cache():
        cache = jax.config.jax_compilation_cache_dir
        results = [measure_line(line, 2) for line in plan.lines(sides, subject.costs, what, (3,), (100,))]
    assert jax.config.jax_compilation_cache_dir != cache
    assert [r.line.what for r in results] == ['compile, cold', 'compile, warm', *what[1:]]
    for result in results:
        side = result.sides[OURS]
        assert not side.fault, (str(result.line), side.fault)
        assert side.median > 0
        assert len(side.samples) == (1 if 'cold' in result.line.what else 2)


def test_every_run_of_decode_starts_at_the_context(subject):
    run = Ours(subject).decode(2, 100)
    run(), run()
    state = run.__closure__[run.__code__.co_freevars.index('state')].cell_contents
    np.testing.assert_array_equal(state.positions, [100 + STEPS] * 2)
    # the rows are copies of one prompt
    np.testing.assert_array_equal(state.tokens, [state.tokens[0]] * 2)


def test_the_work_of_an_answer_is_the_sum_of_its_parts(subject):
    costs = subject.costs
    line = plan.text_line({}, costs, 'generate', 2, 128)
    assert line.work[:2] == (costs.vision(2), costs.prefill(2, 64))
    steps = [costs.decode(2, 64 + i) for i in range(1, STEPS)]
    assert line.work[2] == pytest.approx(Work(sum(w.bytes for w in steps), sum(w.flop for w in steps)))
    assert line.output == (2 * STEPS, 'tokens/s')


def test_contexts_out_of_range_are_refused(cfg):
    plan.check_contexts(cfg, (70, 448))
    for context in (69, 449):
        with pytest.raises(ValueError, match=f'--context {context}'):
            plan.check_contexts(cfg, (context,))


def test_the_presets_fit_the_default_contexts():
    for cfg in PRESETS.values():
        plan.check_contexts(dataclasses.replace(cfg), (704, 1500))
