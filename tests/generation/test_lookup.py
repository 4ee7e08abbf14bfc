"""Prompt lookup gives the tokens of greedy decoding in fewer steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vipllava_jax as vj
from tests.rows import ragged
from vipllava_jax.generation import decoding
from vipllava_jax.generation.lookup import LONGEST_MATCH, Checked, RowQueues, count_accepted, draft
from vipllava_jax.generation.state import eos_rows

S = 24
compiled_draft = jax.jit(draft, static_argnames='drafted')


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=S), st.integers(1, 5))
def test_a_draft_follows_the_last_of_the_longest_matches(ids, drafted):
    n = len(ids)

    def alike(place):
        """The number of ids before a place that equal the newest ones."""
        pairs = zip(reversed(ids[:place]), reversed(ids), strict=False)
        return min(next((i for i, (a, b) in enumerate(pairs) if a != b), place), LONGEST_MATCH)

    place = max(range(n), key=lambda place: (alike(place), place))
    row = np.array([[*ids, *[9] * (S - n)]])
    expected = [*ids, *[9] * (S + drafted)][place : place + drafted]
    assert compiled_draft(row, jnp.array([n]), drafted)[0].tolist() == expected


@pytest.mark.parametrize(
    ('tokens', 'guesses', 'count', 'ended'),
    [
        ([5, 6, 7, 8], [5, 6, 7], 4, False),
        ([5, 6, 7, 8], [5, 9, 7], 2, False),
        ([5, 6, 7, 8], [4, 6, 7], 1, False),
        ([5, 2, 7, 8], [5, 2, 7], 2, True),  # 2 is an end id
        ([5, 6, 2, 8], [5, 9, 2], 2, False),  # the end was not reached
        ([2, 2, 2, 2], [2, 2, 2], 1, True),
        ([5, 6, 7, 2], [5, 6, 7], 4, True),
    ],
)
def test_tokens_count_as_far_as_the_guesses_agree_and_up_to_the_end(tokens, guesses, count, ended):
    counts, ends = count_accepted(jnp.array([tokens]), jnp.array([guesses]), eos_rows((2,), 1))
    assert (counts.tolist(), ends.tolist()) == ([count], [ended])


def test_rows_are_handed_out_in_equal_numbers():
    queues = RowQueues(3)
    tokens = np.arange(18).reshape(3, 2, 3)
    queues.add(Checked(tokens, np.array([[1, 3], [2, 0], [1, 1]])))
    np.testing.assert_array_equal(queues.take(np.array([True, True, True]), 99), [[0, 3], [6, 7], [12, 15]])
    first = np.array([True, False, False])
    np.testing.assert_array_equal(queues.take(first, 99), [[4, 5], [99] * 2, [99] * 2])
    assert queues.take(first, 99).shape == (3, 0)


@pytest.fixture(scope='module')
def rows(cfg):
    return ragged(cfg, np.random.default_rng(0), [(9, 2), (4, 0), (15, 1)], T=32)


@pytest.mark.parametrize('drafted', [pytest.param(1, marks=pytest.mark.slow), 5])
def test_the_tokens_are_those_of_greedy_decoding(params, cfg, rows, drafted):
    run = dict(cfg=cfg, max_new_tokens=[60, 7, 41])
    plain = vj.generate(params, rows, eos=(), **run)
    repeated = [int(row[-1]) for row in plain.tokens]
    for eos in ((), repeated, range(3, 60)):
        expected = vj.generate(params, rows, eos=eos, **run)
        found = vj.generate(params, rows, eos=eos, prompt_lookup_num_tokens=drafted, **run)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.lengths, expected.lengths)
        assert found.finish_reasons == expected.finish_reasons


def test_a_stream_yields_the_same_tokens_in_pieces(params, cfg, rows):
    run = dict(cfg=cfg, max_new_tokens=[60, 7, 41], eos=())
    pieces = [*vj.stream(params, rows, prompt_lookup_num_tokens=5, **run)]
    assert len(pieces) > 2
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), vj.generate(params, rows, **run).tokens)


def test_a_row_that_repeats_itself_takes_fewer_steps(params, cfg, rows):
    state, *_ = decoding.prefill_batch(params, rows, None, eos_rows((), 3), cfg=cfg, slots=128)
    _, checked = decoding.lookup_chunk(params, state, cfg=cfg, steps=16, drafted=5)
    steps = checked.counts.shape[1]
    assert (checked.counts >= 1).all()
    assert checked.counts.sum(axis=1).max() >= 3 * steps


@pytest.mark.parametrize(
    'settings', [{'temperature': 1.0}, {'repetition_penalty': 1.1}, {'num_beams': 2}, {'logprobs': 0}]
)
def test_other_settings_than_those_of_greedy_decoding_are_refused(params, cfg, rows, settings):
    with pytest.raises(ValueError, match='prompt_lookup_num_tokens is 3, .* greedy decoding alone'):
        vj.generate(params, rows, cfg=cfg, prompt_lookup_num_tokens=3, **settings)


def test_the_cache_is_updated_in_place(params, cfg, rows):
    eos = eos_rows(cfg.eos, 3)
    state, *_ = jax.eval_shape(lambda: decoding.prefill_batch(params, rows, None, eos, cfg=cfg, slots=128))
    compiled = decoding.lookup_chunk.lower(params, state, cfg=cfg, steps=8, drafted=5).compile()
    cache = state.cache.k[0]
    size = cache.size * cache.dtype.itemsize * 2 * cfg.text.layers
    assert compiled.memory_analysis().alias_size_in_bytes >= size
