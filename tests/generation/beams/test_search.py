"""Beams equal those of transformers, and depend neither on other rows nor on chunks."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

import vipllava_jax as vj
from tests import peer
from tests.compilations import compilations
from tests.conftest import SMALL
from tests.gates.program import collectives
from tests.generation.test_meshes import on_mesh
from tests.rows import ragged
from vipllava_jax.generation import decoding
from vipllava_jax.generation.beams import programs as beams
from vipllava_jax.generation.beams import search as beam_search
from vipllava_jax.generation.beams.state import map_beams
from vipllava_jax.generation.plan import make_plan
from vipllava_jax.sharding import make_mesh, sharding

ROWS = [(9, 2), (6, 0), (15, 1), (7, 3)]
EOS = (*range(0, 120, 9),)  # so many that answers of every length end with one
# Most tests share these, and so their programs.
RUN = dict(cfg=SMALL, eos=EOS, max_new_tokens=20, num_beams=4, num_return_sequences=3, logprobs=2)
MODES = [
    dict(early_stopping=early_stopping, length_penalty=length_penalty)
    for early_stopping in (False, True, 'never')
    for length_penalty in (1.0, 0.0, -0.7, 2.0)
]
PROCESSORS = [
    dict(repetition_penalty=1.3),
    dict(no_repeat_ngram_size=2, early_stopping=True),
    dict(min_new_tokens=5),
    dict(bad_words_ids=[[9], [3, 4], [18]], sequence_bias={(5, 6): 2.0, (7,): 1.0}),
    dict(renormalize_logits=True, repetition_penalty=0.8),
    dict(forced_eos_token_id=9, length_penalty=0.0),
    dict(exponential_decay_length_penalty=(3, 1.3), early_stopping='never'),
    dict(suppress_tokens=[18, 90, 63, 27, 50, 51, 52, 53], begin_suppress_tokens=[18, 4]),
]


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """A transformers model, and our params of it."""
    theirs = peer.model(SMALL)
    folder = tmp_path_factory.mktemp('peer')
    theirs.save_pretrained(folder)
    return theirs, vj.load(folder).params


@pytest.fixture
def batch(rng):
    return ragged(SMALL, rng, ROWS, T=32)


def row_of(batch, row):
    """A batch of a single row with the padding of the whole batch, so that programs are shared."""
    return jax.tree.map(lambda x: x[row : row + 1], batch)


def check_equals_transformers(pair, batch, **settings):
    """Compares ids, lengths, scores and log-probabilities -> our answers."""
    theirs, params = pair
    settings = RUN | settings
    out = vj.generate(params, batch, **settings)
    expected = peer.beams(theirs, batch, pad=SMALL.pad, **settings)
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    np.testing.assert_allclose(out.sequence_scores, expected.sequence_scores, rtol=1e-5, atol=1e-5)
    for name in ('scores', 'logprobs'):
        theirs_ = np.where(np.arange(out.tokens.shape[1]) < out.lengths[:, None], getattr(expected, name), 0)
        np.testing.assert_allclose(getattr(out, name), theirs_, atol=1e-5)
    ended = np.isin(out.tokens[np.arange(len(out)), out.lengths - 1], settings['eos'])
    np.testing.assert_array_equal(out.finished, ended)
    assert out.finish_reasons == tuple('stop' if end else 'length' for end in ended)
    assert (out.lengths[~ended] == settings['max_new_tokens']).all()
    return out


@pytest.mark.slow
@pytest.mark.parity
def test_answers_of_a_ragged_batch_equal_those_of_transformers(pair, batch):
    lengths = {tuple(check_equals_transformers(pair, batch, **mode).lengths) for mode in MODES}
    assert len(lengths) > 4  # the modes differ, and answers end at various lengths
    assert len({n for several in lengths for n in several}) > 8


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    'settings',
    [
        dict(num_beams=2, num_return_sequences=1, eos=(5, 77, 11), logprobs=0),
        dict(num_beams=7, num_return_sequences=7, eos=(*range(0, 120, 3),), logprobs=0),
        pytest.param(
            dict(num_beams=130, num_return_sequences=2, eos=(9,), logprobs=0, max_new_tokens=4),
            marks=pytest.mark.by_hand,
        ),
    ],
    ids=str,
)
def test_other_numbers_of_beams_and_end_ids(pair, batch, settings):
    for mode in MODES[::3]:
        check_equals_transformers(pair, batch, **settings, **mode)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize('row', [2, *(pytest.param(row, marks=pytest.mark.by_hand) for row in (0, 1, 3))])
def test_processors_apply_to_log_probabilities(pair, batch, row):
    # Rows alone, because the processors of transformers see the padding of a batch.
    for settings in PROCESSORS:
        check_equals_transformers(pair, row_of(batch, row), **settings)


def check_counts(counts, probabilities):
    assert chisquare(counts, np.sum(counts) * np.array(probabilities) / np.sum(probabilities)).pvalue > 1e-3
    np.testing.assert_allclose(np.sum(probabilities), 1, rtol=1e-6)


def by_row(out):
    return out.tokens.reshape(4, 3, -1)


def check_equal(a, b):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    assert a.finish_reasons == b.finish_reasons
    for name in ('sequence_scores', 'scores', 'logprobs', 'top_ids', 'top_logprobs'):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_reports_agree_with_each_other(params, batch):
    out = vj.generate(params, batch, length_penalty=[1, 0, 0.5, 2], **RUN)
    penalty = np.repeat([1, 0, 0.5, 2], 3)
    np.testing.assert_allclose(out.scores.sum(axis=1) / out.lengths**penalty, out.sequence_scores, rtol=1e-4)
    assert (np.diff(out.sequence_scores.reshape(4, 3)) <= 0).all()
    first = out.top_ids[:, :, 0] == out.tokens
    np.testing.assert_array_equal(out.top_logprobs[:, :, 0][first], out.logprobs[first])
    for answers in by_row(out):
        assert len({answer.tobytes() for answer in answers}) == 3
    np.testing.assert_array_equal(out.scores, out.logprobs)


@pytest.mark.slow
def test_a_value_compiles_nothing(params, batch):
    def run(**settings):
        vj.generate(params, batch, **RUN, **settings)
        return beams.prefill_beams._cache_size(), beams.beam_chunk._cache_size()

    compiled = run()
    for settings in [*MODES, dict(length_penalty=[1, 2, 3, 4]), dict(max_time=60)]:
        assert run(**settings) == compiled
    vj.generate(params, batch, **{**RUN, 'max_new_tokens': [3, 4, 30, 6], 'eos': (*range(14),)})
    assert (beams.prefill_beams._cache_size(), beams.beam_chunk._cache_size()) == compiled


def test_the_time_ends_answers(params, batch):
    run = RUN | {'eos': (*range(1, 120, 9),)}
    out = vj.generate(params, batch, max_time=[1e-9, 60, 60, 60], **run)
    assert out.finish_reasons[:3] == ('time',) * 3
    assert (out.lengths[:3] == 1).all()
    whole = vj.generate(params, batch, **run)
    assert (whole.lengths[:3] > 1).any()
    np.testing.assert_array_equal(out.tokens[3:], whole.tokens[3:])


def test_beams_cannot_be_streamed(params, batch):
    with pytest.raises(ValueError, match='num_beams is 4, but beams cannot be streamed.*: call generate'):
        vj.stream(params, batch, **RUN)


def test_logits_that_are_not_finite_are_explained(params, batch):
    broken = {**params, 'llama': {**params['llama'], 'norm': {'w': params['llama']['norm']['w'] * np.nan}}}
    with pytest.raises(ValueError, match='llama/norm/w holds NaN'):
        vj.generate(broken, batch, **RUN)


def test_samples_without_replacement_have_exact_probabilities():
    """Of 2 beams with 3 tokens, 2 continuations are drawn one after the other."""
    p = np.array([[0.3, 0.1, 0.05], [0.25, 0.2, 0.1]])
    totals = jnp.tile(jnp.log(p).astype(jnp.float32), (6000, 1, 1))
    sampling = beams.Sampling(
        jnp.ones(12000), *[jnp.zeros(12000)] * 3, jnp.repeat(jax.random.split(jax.random.key(0), 6000), 2)
    )
    drawn, tokens = beams.best(beams.perturbed(totals, sampling, jnp.full(12000, 7)), 2)
    pairs = np.asarray(drawn * 3 + tokens)
    p = p.ravel()
    expected = {(i, j): p[i] * p[j] / (1 - p[i]) for i in range(6) for j in range(6) if i != j}
    counts = [(pairs == pair).all(axis=1).sum() for pair in expected]
    check_counts(counts, [*expected.values()])


SAMPLED = RUN | dict(temperature=1.3, seed=3, top_p=0.9)


@pytest.mark.slow
def test_sampled_beams_depend_only_on_the_row(params, batch):
    together = vj.generate(params, batch, **SAMPLED)
    check_equal(together, vj.generate(params, batch, **SAMPLED))
    other = vj.generate(params, batch, **SAMPLED | {'seed': 4})
    assert not np.array_equal(other.sequence_scores, together.sequence_scores)
    swapped = jax.tree.map(lambda x: x[[2, 1, 0, 3]], batch)
    seeds = vj.generate(params, batch, **SAMPLED | {'seed': [5, 6, 7, 8]})
    again = vj.generate(params, swapped, **SAMPLED | {'seed': [7, 6, 5, 8]})
    np.testing.assert_array_equal(by_row(again)[[2, 1, 0, 3]], by_row(seeds))
    mixed = vj.generate(params, batch, **SAMPLED | {'temperature': [0, 1.3, 0, 0]})
    searched = vj.generate(params, batch, **RUN)
    for row in (0, 2, 3):
        n = min(mixed.tokens.shape[1], searched.tokens.shape[1])
        np.testing.assert_array_equal(by_row(mixed)[row, :, :n], by_row(searched)[row, :, :n])


@pytest.mark.slow
def test_first_samples_of_a_batch_have_exact_probabilities(params, rng):
    """4 of the 5 likeliest tokens are drawn; the one that is missing decides which 2 answers are best."""
    one = ragged(SMALL, rng, [(6, 0)])
    batch = jax.tree.map(lambda x: np.repeat(x, 64, axis=0), one)
    settings = dict(cfg=SMALL, eos=(), num_beams=2, num_return_sequences=2, max_new_tokens=1, top_k=5)
    logits = np.asarray(jax.jit(partial(vj.forward, cfg=SMALL))(params, one.tokens, one.images))[0, -1]
    order = np.argsort(-logits)[:5]
    spread = logits[order[0]] - logits[order[4]]
    temperature = float(spread)  # the five probabilities differ by a factor of e
    p = np.exp(logits[order] / temperature)
    p /= p.sum()
    missing = np.zeros(5)
    for drawn in itertools.permutations(range(5), 4):
        left, q = 1.0, 1.0
        for i in drawn:
            q, left = q * p[i] / left, left - p[i]
        missing[({*range(5)} - {*drawn}).pop()] += q
    counts = np.zeros(3, int)
    for seed in range(16):
        out = vj.generate(params, batch, temperature=temperature, seed=seed, **settings)
        pairs = out.tokens.reshape(64, 2)
        for n, pair in enumerate(([1, 2], [0, 2], [0, 1])):
            counts[n] += (pairs == order[pair]).all(axis=1).sum()
    check_counts(counts, [missing[0], missing[1], missing[2:].sum()])


@pytest.mark.slow
@pytest.mark.parametrize(
    'settings', [pytest.param(RUN, marks=pytest.mark.by_hand), SAMPLED], ids=['search', 'sampled']
)
def test_rows_alone_and_other_chunks_change_nothing(params, batch, settings, monkeypatch):
    settings = settings | {'seed': [1, 2, 3, 4], 'max_new_tokens': [20, 3, 11, 1]}
    together = vj.generate(params, batch, **settings)
    for steps in (1, 2):
        monkeypatch.setattr(beam_search, 'CHUNK', steps)
        check_equal(vj.generate(params, batch, **settings), together)
    for row in range(4):
        own = settings | {name: settings[name][row] for name in ('max_new_tokens',)} | {'seed': [row + 1]}
        single = vj.generate(params, row_of(batch, row), **own)
        rows = slice(3 * row, 3 * row + 3)
        n = single.tokens.shape[1]
        np.testing.assert_array_equal(single.tokens, together.tokens[rows, :n])
        np.testing.assert_allclose(single.sequence_scores, together.sequence_scores[rows], rtol=1e-5)
        assert single.finish_reasons == together.finish_reasons[rows]
        np.testing.assert_allclose(single.scores, together.scores[rows, :n], atol=1e-5)


@pytest.mark.slow
def test_a_chunk_updates_the_cache_in_place(params, batch):
    compiled = compiled_chunk(params, batch)
    text = SMALL.text
    cache = (16, 128, text.kv_heads, text.head_size)
    assert compiled.memory_analysis().alias_size_in_bytes >= np.prod(cache) * 4 * 2 * text.layers
    shape = re.escape(f'f32[{",".join(map(str, cache))}]')
    assert re.search(shape, compiled.as_text())
    assert not re.search(rf'= {shape}\S* copy\(', compiled.as_text())


def compiled_chunk(params, batch, axes=None):
    settings = vj.GenerationSettings(**{name: x for name, x in RUN.items() if name != 'cfg'})
    chosen = make_plan(params, batch, SMALL, settings, None)
    arguments, shapes = beam_search.program_arguments(params, chosen)
    traced = beams.prefill_beams.trace(params, *arguments, **shapes, **chosen.static)
    mesh = make_mesh(axes, devices=jax.devices()) if axes else None

    def placed(x, letters):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(letters, x.shape, mesh))

    state = map_beams(placed, traced.out_info[0])
    return beams.beam_chunk.lower(params, state, steps=8, **chosen.static).compile()


@pytest.mark.slow
@pytest.mark.parametrize(
    'axes',
    [
        pytest.param({'data': 2}, marks=pytest.mark.by_hand),
        pytest.param({'tensor': 2}, marks=pytest.mark.by_hand),
        {'data': 2, 'tensor': 2},
    ],
    ids=str,
)
def test_beams_on_a_mesh_equal_those_of_one_device(params, batch, axes):
    batch = jax.tree.map(lambda x: x[:3], batch)  # the mesh adds a fourth row
    sharded = on_mesh(params, axes)
    for settings in (RUN, SAMPLED):
        check_equal(vj.generate(sharded, batch, **settings), vj.generate(params, batch, **settings))
    found = collectives(compiled_chunk(sharded, batch, axes).as_text())
    if 'tensor' not in axes:
        assert {*found} <= {'all-reduce'}  # of the bounds of the slots that are moved


@pytest.mark.slow
def test_the_programs_compiled_for_shapes_are_those_that_run(params, batch):
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), params)
    settings = RUN | dict(max_new_tokens=150)  # a number of slots that no other test uses
    with compilations('prefill_beams|beam_chunk') as compiled:
        decoding.compile_for(shapes, batch, **settings)
        assert len(compiled) == 2
        vj.generate(jax.device_put(params, sharding), batch, **settings)
        assert len(compiled) == 2


@pytest.mark.slow
@pytest.mark.parity
def test_stop_strings_end_candidates_as_in_transformers(folder, source):
    import torch
    from transformers import StoppingCriteria, VipLlavaForConditionalGeneration

    model = vj.load(folder)
    theirs = VipLlavaForConditionalGeneration.from_pretrained(source, dtype='float32').eval()
    batch = model.processor(['Hi', 'What is it?', 'A dog'])
    settings = dict(eos=(9,), max_new_tokens=16, num_beams=3, num_return_sequences=2)
    run = settings | dict(cfg=model.cfg, processor=model.processor)
    texts = model.processor.decode(vj.generate(model.params, batch, **run))
    stops = [text[n : n + 3] for text in texts for n in (2, 6)]
    ended = 0

    class Stops(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            new = input_ids[:, batch.tokens.shape[1] :].tolist()
            spelled = [model.processor.tokenizer.decode_untrimmed(ids) for ids in new]
            return torch.tensor([any(stop in text for stop in stops) for text in spelled])

    for mode in MODES[1::3]:
        out = vj.generate(model.params, batch, stop=stops, **run, **mode)
        expected = peer.beams(theirs, batch, model.cfg.pad, stopping_criteria=[Stops()], **settings, **mode)
        np.testing.assert_array_equal(out.tokens, expected.tokens)
        np.testing.assert_allclose(out.sequence_scores, expected.sequence_scores, rtol=1e-5)
        found = [
            any(stop in model.processor.tokenizer.decode_untrimmed(row[:n].tolist()) for stop in stops)
            for row, n in zip(out.tokens, out.lengths, strict=True)
        ]
        np.testing.assert_array_equal(out.finished, found)
        ended += sum(found)
    assert ended > 4
