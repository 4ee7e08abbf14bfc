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
from vipllava_jax.device_memory import bytes_per_device
from vipllava_jax.model.cost import Work
from vipllava_jax.model.input_checks import check_inputs
from vipllava_jax.model.params import abstract
from vipllava_jax.placement import place
from vipllava_jax.sharding import make_mesh
from vipllava_jax.weight_sharding import leaf_sharding


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
@pytest.mark.parametrize('quantize', [pytest.param(None, marks=pytest.mark.by_hand), 'int4'])
def test_random_params_of_a_mesh_are_created_in_parts(cfg, quantize):
    mesh = make_mesh({'tensor': 2, 'fsdp': 2}, devices=jax.devices()[:4])
    params = place(random_params(cfg, 'float32', quantize, mesh), cfg, fuse=False, mesh=mesh)
    for path, w in flat(params):
        expected = leaf_sharding(path, w, mesh)
        assert jax.tree.map(lambda x: x.sharding, w) == expected, path
        assert np.count_nonzero(w.astype('float32')) > 0.8 * w.size, path
    size = sum(shard.data.nbytes for x in jax.tree.leaves(params) for shard in x.addressable_shards[:1])
    assert size == bytes_per_device(params, mesh)


def test_a_mesh_shares_the_work_of_a_line(subject):
    mesh = make_mesh({'data': 2, 'tensor': 4})
    alone, divided = (
        [
            line.work[-1]
            for line in plan.lines({}, subject.costs, ('vision', 'prefill'), (8,), (192,), plan.Shares.of(m))
        ]
        for m in (None, mesh)
    )
    for whole, share in zip(alone, divided, strict=True):
        assert share.flop == pytest.approx(whole.flop / 8)
        assert whole.bytes / 8 <= share.bytes <= whole.bytes / 4  # each half of the rows reads all weights


WHAT = ('compile', 'vision', 'prefill', 'first-token', 'decode', 'generate')


@pytest.mark.by_hand
def test_every_line_is_measured_on_a_mesh(cfg):
    mesh = make_mesh({'data': 2, 'tensor': 2}, devices=jax.devices()[:4])
    params = place(random_params(cfg, 'float32', None, mesh), cfg, mesh=mesh)
    sides = {OURS: Ours(Subject(params, silent(cfg), mesh))}
    what = (*WHAT, 'decode-shared')
    costs = sides[OURS].subject.costs
    with compilation_cache():
        results = [
            measure_line(x, 2) for x in plan.lines(sides, costs, what, (4,), (100,), plan.Shares.of(mesh))
        ]
    assert [
        (str(result.line), side.fault) for result in results for side in result.sides.values() if side.fault
    ] == []


@pytest.mark.slow
def test_every_line_is_measured(subject):
    what = (*WHAT[:5], 'decode-shared', 'generate', 'questions')
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
    line = plan.text_line({}, costs, 'generate', 2, 128, plan.Shares())
    assert line.work[:2] == (costs.vision(2), costs.prefill(2, 64))
    steps = [costs.decode(2, 64 + i) for i in range(1, STEPS)]
    assert line.work[2] == pytest.approx(Work(sum(w.bytes for w in steps), sum(w.flop for w in steps)))
    assert line.output == (2 * STEPS, 'tokens/s')


def test_the_work_of_a_step_counts_shared_keys_once(subject):
    costs = subject.costs
    assert costs.decode(1, 100, 80) == costs.decode(1, 100)
    one, four = costs.decode(1, 100), costs.decode(4, 100, 80)
    assert four.flop == 4 * one.flop
    assert four.bytes == one.bytes + 3 * 21 * costs.cached_token


def test_questions_differ_in_their_last_tokens(subject):
    batch, first = subject.questions(3, 90, 24)
    np.testing.assert_array_equal(batch.tokens[:, :66], first.tokens[[0] * 3, :66])
    assert (batch.tokens[0, 66:90] != batch.tokens[1, 66:90]).any()
    assert first.lengths.tolist() == [66]
    np.testing.assert_array_equal(batch.images[1], batch.images[2])


def test_contexts_out_of_range_are_refused(cfg):
    plan.check_contexts(cfg, (70, 448))
    for context in (69, 449):
        with pytest.raises(ValueError, match=f'--context {context}'):
            plan.check_contexts(cfg, (context,))


def test_the_presets_fit_the_default_contexts():
    for cfg in PRESETS.values():
        plan.check_contexts(dataclasses.replace(cfg), (704, 1500))
