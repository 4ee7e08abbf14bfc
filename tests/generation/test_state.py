"""Rows of the decoding state can be taken out and inserted, and then decode as they would alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vipllava_jax as vj
from tests.rows import alone, ragged
from vipllava_jax.generation.logits.processing import processing_of
from vipllava_jax.generation.logits.sampling import sampling_of
from vipllava_jax.generation.programs import decode_chunk, prefill_batch
from vipllava_jax.generation.state import NO_ID, eos_rows, insert, take

ROWS = [(9, 2), (4, 0), (15, 1)]
GREEDY = vj.GenerationSettings()
SAMPLED = vj.GenerationSettings(temperature=1.5, top_k=[0, 9, 30], top_p=[1, 1, 0.9], seed=[1, 2, 3])

LISTS = vj.GenerationSettings(
    seed=[1, 2, 3],
    temperature=[1.5, 0, 1],
    suppress_tokens=range(3, 13),
    bad_words_ids=[[14, 15, 16], [17]],
    repetition_penalty=1.2,
    no_repeat_ngram_size=2,
)


@pytest.fixture
def batch(cfg, rng):
    return ragged(cfg, rng, ROWS, T=32)


@pytest.fixture
def prefill(params, cfg):
    def run(batch, settings=GREEDY, slots=64, eos=()):
        B = len(batch.tokens)
        processing = processing_of(settings, batch.lengths, np.full(B, 99), eos)
        sampling = sampling_of(settings, B, always=processing is not None)
        return prefill_batch(params, batch, sampling, eos_rows(eos, B), processing, cfg=cfg, slots=slots)[0]

    return run


def decode(params, cfg, state, steps=8):
    """The tokens BT of a chunk, which is run on a copy of the state."""
    copy = jax.tree.map(jnp.copy, state)
    return np.asarray(decode_chunk(params, copy, cfg=cfg, steps=steps)[1].tokens)


def same(a, b):
    leaves = [jax.tree.leaves(jax.tree.map(plain, state)) for state in (a, b)]
    for x, y in zip(*leaves, strict=True):
        np.testing.assert_array_equal(x, y)


def plain(x):
    """An array as numpy, also if it holds random keys."""
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


@pytest.mark.parametrize('settings', [GREEDY, SAMPLED], ids=['greedy', 'sampled'])
def test_every_leaf_leads_with_the_rows(params, cfg, batch, prefill, settings):
    state = jax.eval_shape(partial(prefill, settings=settings), batch)
    after, _ = jax.eval_shape(partial(decode_chunk, cfg=cfg, steps=2), params, state)
    for leaf in jax.tree.leaves((state, after)):
        assert leaf.shape[0] == len(ROWS)
    for leaf in (*state.cache.k, *state.cache.v):
        assert leaf.shape == (len(ROWS), 64, cfg.text.kv_heads, cfg.text.head_size)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), after
    )


def test_the_ids_are_the_prompt_and_the_answer(params, cfg, batch, prefill):
    state = prefill(batch)
    first = np.asarray(state.tokens)
    state, new = decode_chunk(params, state, cfg=cfg, steps=8)
    for row, length in enumerate(batch.lengths):
        expected = [*batch.tokens[row, :length], first[row], *np.asarray(new.tokens[row])]
        np.testing.assert_array_equal(state.ids[row, : len(expected)], expected)
        assert state.positions[row] == len(expected) - 1
        assert state.ids[row, state.positions[row]] == state.tokens[row]


def test_ids_past_the_last_slot_are_dropped(params, cfg, batch, prefill):
    state = prefill(batch, slots=32)
    before = np.asarray(state.ids)
    for _ in range(3):
        state, _ = decode_chunk(params, state, cfg=cfg, steps=8)
    for row, length in enumerate(batch.lengths):
        np.testing.assert_array_equal(state.ids[row, :length], before[row, :length])


def test_each_row_has_its_own_end_ids(params, cfg, batch, prefill):
    plain_tokens = decode(params, cfg, prefill(batch))
    eos = eos_rows((), len(ROWS))
    eos[1, 3] = plain_tokens[1, 2]
    state, *_ = prefill_batch(params, batch, None, eos, cfg=cfg, slots=64)
    tokens = decode(params, cfg, state)
    np.testing.assert_array_equal(tokens[[0, 2]], plain_tokens[[0, 2]])
    end = plain_tokens[1].tolist().index(plain_tokens[1, 2])
    assert (tokens[1, end + 1 :] == cfg.pad).all()


def test_end_ids_are_padded_to_few_widths():
    assert [eos_rows(range(n), 3).shape for n in (0, 1, 8, 9)] == [(3, 8), (3, 8), (3, 8), (3, 16)]
    np.testing.assert_array_equal(eos_rows([5, 2], 2), [[5, 2, *[NO_ID] * 6]] * 2)


@pytest.mark.slow
@pytest.mark.parametrize('settings', [GREEDY, SAMPLED], ids=['greedy', 'sampled'])
def test_an_inserted_row_decodes_as_it_does_alone(params, cfg, batch, prefill, settings):
    state = prefill(batch, settings)
    state, _ = decode_chunk(params, state, cfg=cfg, steps=8)
    neighbors = decode(params, cfg, state)
    other = prefill(
        alone(batch, 0), vj.GenerationSettings(temperature=settings.temperature and 0.7, seed=[9])
    )
    expected = decode(params, cfg, other)
    merged = insert(state, 2, other)
    tokens = decode(params, cfg, merged)
    np.testing.assert_array_equal(tokens[2], expected[0])
    np.testing.assert_array_equal(tokens[:2], neighbors[:2])
    same(take(merged, [2]), other)


@pytest.mark.slow
def test_a_row_of_shorter_lists_decodes_as_it_does_alone(params, cfg, batch, prefill):
    state, _ = decode_chunk(params, prefill(batch, LISTS), cfg=cfg, steps=8)
    neighbors = decode(params, cfg, state)
    settings = vj.GenerationSettings(
        temperature=0.9, seed=[9], suppress_tokens=20, sequence_bias={(4,): 3.0}, no_repeat_ngram_size=3
    )
    other = prefill(alone(batch, 0), settings, slots=32)
    expected = decode(params, cfg, other)
    merged = insert(state, 2, other)
    assert merged.processing.suppress[2].tolist() == [21, *[0] * (merged.processing.suppress.shape[1] - 1)]
    assert not merged.processing.bad_words.bias[2].any()
    tokens = decode(params, cfg, merged)
    np.testing.assert_array_equal(tokens[2], expected[0])
    np.testing.assert_array_equal(tokens[:2], neighbors[:2])


def test_longer_lists_and_processors_alone_are_refused(batch, prefill):
    few = vj.GenerationSettings(suppress_tokens=[3], repetition_penalty=1.2)
    sampled = vj.GenerationSettings(temperature=1)
    for state, other, message in [
        (few, LISTS, r'a row whose bad_words\.ids have the shape \(8, 4\) does not fit a state of \(8, 1\)'),
        (sampled, few, 'a row with processors does not fit a state without'),
        (few, sampled, 'a row without processors does not fit a state with'),
    ]:
        shapes = [jax.eval_shape(partial(prefill, settings=settings), batch) for settings in (state, other)]
        with pytest.raises(ValueError, match=message):
            insert(shapes[0], 0, shapes[1])


def test_several_rows_are_inserted_together(params, cfg, batch, prefill):
    other = take(prefill(batch), [2, 0])
    merged = insert(prefill(batch), 1, other)
    same(take(merged, [1, 2]), other)
    same(take(merged, [0]), take(prefill(batch), [0]))


@pytest.mark.slow
def test_a_row_of_fewer_slots_and_end_ids_fits(params, cfg, batch, prefill):
    other = prefill(alone(batch, 1), slots=32, eos=[3])
    merged = insert(prefill(batch, slots=64, eos=range(20, 30)), 0, other)
    expected = decode(params, cfg, prefill(alone(batch, 1), slots=64, eos=[3]))
    np.testing.assert_array_equal(decode(params, cfg, merged)[0], expected[0])
    assert merged.eos[0].tolist() == [3, *[NO_ID] * 15]
    row = take(merged, [0])
    for large, small in zip(jax.tree.leaves(row.cache), jax.tree.leaves(other.cache), strict=True):
        np.testing.assert_array_equal(large[:, :32], small)
        assert not large[:, 32:].any()


def test_a_nan_of_an_earlier_row_is_overwritten(params, cfg, batch, prefill):
    broken = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), prefill(batch).cache)
    state = prefill(batch).replace(cache=broken)
    other = prefill(alone(batch, 1), slots=32)
    expected = decode(params, cfg, other)
    np.testing.assert_array_equal(decode(params, cfg, insert(state, 0, other))[0], expected[0])


def test_take_keeps_the_order_and_the_source(params, cfg, batch, prefill):
    state = prefill(batch, SAMPLED)
    rows = take(state, [2, 0, 2])
    np.testing.assert_array_equal(decode(params, cfg, rows), decode(params, cfg, state)[[2, 0, 2]])


def test_insert_updates_the_state_in_place(params, cfg, batch, prefill):
    state, other = prefill(batch), prefill(alone(batch, 0))
    pointers = [x.unsafe_buffer_pointer() for x in state.cache.k]
    merged = insert(state, 1, other)
    assert [x.unsafe_buffer_pointer() for x in merged.cache.k] == pointers
    assert state.ids.is_deleted()
    assert not other.ids.is_deleted()


def test_another_row_index_compiles_nothing(batch, prefill):
    from vipllava_jax.generation import state as module

    state, other = prefill(batch), prefill(alone(batch, 0))
    state = insert(state, 0, other)
    compiled = module._insert._cache_size()
    state = insert(insert(state, 1, other), np.int64(2), other)
    assert module._insert._cache_size() == compiled


def test_rows_that_do_not_fit_are_refused(cfg, batch, prefill):
    state, one = prefill(batch, slots=32), alone(batch, 0)
    for row, other, message in [
        (0, prefill(one), 'a row of 64 slots does not fit a state of 32: create a larger state'),
        (0, prefill(one, slots=32, eos=range(9)), 'a row of 16 end ids does not fit a state of 8'),
        (0, prefill(one, vj.GenerationSettings(temperature=1), 32), 'a sampled row does not fit a greedy'),
        (3, prefill(one, slots=32), '1 rows do not fit at row 3 of a state of 3 rows'),
        (-1, prefill(one, slots=32), 'do not fit at row -1'),
        (1, state, '3 rows do not fit at row 1'),
    ]:
        with pytest.raises(ValueError, match=message):
            insert(state, row, other)
    with pytest.raises(ValueError, match='a greedy row does not fit a sampled state'):
        insert(prefill(batch, SAMPLED, 32), 0, prefill(one, slots=32))
    for rows, message in [
        ([3], 'there is no row 3'),
        ([-1], 'there is no row -1'),
        (1, 'rows are 1'),
        ([], 'rows are'),
    ]:
        with pytest.raises(ValueError, match=message):
            take(state, rows)
