"""Processors change the scores of tokens as those of transformers do, each row by its own settings."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from tests.generation.logits.scoring import EOS, B, V, assert_same, ours, random_rows, theirs
from vipllava_jax.generation.logits.processing import NUMBERS, processing_of
from vipllava_jax.generation.settings import GenerationSettings

ALONE = {
    'sequence_bias': dict(sequence_bias={(3,): 1.5, (1, 3): -2.0, (4,): -np.inf, (2, 1, 0): 4.0}),
    'duplicates in sequence_bias': dict(
        sequence_bias=[[[3], 1.0], [[2, 4, 3], 2.0], [[3], 5.0], [[2, 4, 3], 1.0]]
    ),
    'logit_bias': dict(logit_bias={7: 3.0, 0: -1.0, V - 1: -np.inf}),
    'repetition_penalty': dict(repetition_penalty=1.7),
    'a reward of repetition': dict(repetition_penalty=0.4),
    'presence_penalty': dict(presence_penalty=0.8),
    'frequency_penalty': dict(frequency_penalty=-0.3),
    'no_repeat_ngram_size 1': dict(no_repeat_ngram_size=1),
    'no_repeat_ngram_size 2': dict(no_repeat_ngram_size=2),
    'no_repeat_ngram_size 30': dict(no_repeat_ngram_size=30),
    'bad_words_ids': dict(bad_words_ids=[[3], [1, 4], [1, 4], [0, 1, 2], [2], [2, 5]]),
    'min_new_tokens': dict(min_new_tokens=3),
    'forced_eos_token_id': dict(forced_eos_token_id=7),
    'several forced_eos_token_id': dict(forced_eos_token_id=[7, 2, 7]),
    'remove_invalid_values': dict(remove_invalid_values=True),
    'exponential_decay_length_penalty': dict(exponential_decay_length_penalty=(1, 1.5)),
    'a factor close to 1': dict(exponential_decay_length_penalty=(0, 1.0001)),
    'a factor below 1': dict(exponential_decay_length_penalty=(2, 0.5)),
    'suppress_tokens': dict(suppress_tokens=[2, 9, 9, V - 1]),
    'begin_suppress_tokens': dict(begin_suppress_tokens=[*range(0, 32, 4)]),
    'renormalize_logits': dict(renormalize_logits=True, suppress_tokens=[3]),
}
ALL = dict(
    sequence_bias={(0,): 1.5, (4,): -1.0, (1, 3): -2.0, (7,): -np.inf},
    repetition_penalty=1.7,
    presence_penalty=0.8,
    frequency_penalty=0.5,
    no_repeat_ngram_size=2,
    bad_words_ids=[[3], [6], [1, 4]],
    min_new_tokens=20,
    forced_eos_token_id=6,
    remove_invalid_values=True,
    exponential_decay_length_penalty=(0, 1.02),
    suppress_tokens=[9, 10],
    begin_suppress_tokens=[11, 12],
    processors=[lambda ids, lengths, logits: logits.clip(None, 1.0)],
    renormalize_logits=True,
)


@pytest.mark.parity
@pytest.mark.parametrize('name', ALONE)
def test_each_processor_is_that_of_transformers(name):
    changed = False
    settings = GenerationSettings(**ALONE[name])
    for seed in range(4):
        rows = random_rows(seed)
        got = ours(rows, settings)
        assert_same(got, theirs(rows, settings))
        changed |= (got != rows.logits).any()
    assert changed or name == 'no_repeat_ngram_size 30'


@pytest.mark.parity
def test_each_row_has_its_own_numbers():
    settings = GenerationSettings(
        repetition_penalty=[1.0, 0.5, 1.2, 1.0, 2.0, 1.1],
        presence_penalty=[0, 0.5, -1, 0, 2, 0],
        frequency_penalty=[0.1, 0, 0, -0.2, 0, 1],
        no_repeat_ngram_size=[0, 1, 2, 3, 2, 0],
        min_new_tokens=[0, 9, 0, 3, 1, 30],
        exponential_decay_length_penalty=([0, 1, 2, 3, 4, 5], [1.0, 1.2, 0.5, 2.0, 1.01, 1.0]),
    )
    for seed in range(4):
        rows = random_rows(seed)
        assert_same(ours(rows, settings), theirs(rows, settings))


@pytest.mark.parity
def test_all_processors_together_have_the_order_of_transformers():
    """And where two of them do not commute, the other order would give other scores."""
    settings = GenerationSettings(**ALL)
    several = [random_rows(seed) for seed in range(4)]
    expected = [theirs(rows, settings) for rows in several]
    for rows, scores in zip(several, expected, strict=True):
        assert_same(ours(rows, settings), scores)
    for first, second in [
        ('SequenceBias', 'RepetitionPenalty'),
        ('RepetitionPenalty', 'OpenAIPenalties'),
        ('NoRepeatNGram', 'ForcedEOS'),
        ('NoBadWords', 'ForcedEOS'),
        ('MinNewTokens', 'InfNanRemove'),
        ('ForcedEOS', 'InfNanRemove'),
        ('InfNanRemove', 'ExponentialDecay'),
        ('InfNanRemove', 'SuppressTokensLogits'),
        ('InfNanRemove', 'SuppressTokensAtBegin'),
        ('OpenAIPenalties', 'function'),
        ('function', 'LogitNormalization'),
    ]:

        def swap(processors, names=(first, second)):
            a, b = (
                next(i for i, p in enumerate(processors) if type(p).__name__.startswith(name))
                for name in names
            )
            processors[a], processors[b] = processors[b], processors[a]

        others = [theirs(rows, settings, change=swap) for rows in several]
        equal = [np.allclose(a, b, rtol=1e-4) for a, b in zip(others, expected, strict=True)]
        assert not all(equal), (first, second)


@pytest.mark.parity
@pytest.mark.parametrize('fields', [{}, ALL], ids=['alone', 'with the others'])
def test_invalid_logits_become_finite(fields):
    rows = random_rows(0)
    rows.logits[:, [1, 4, 8]] = np.nan
    rows.logits[:, [9, EOS[0], 20]] = np.inf
    settings = GenerationSettings(**{**fields, 'remove_invalid_values': True, 'processors': ()})
    got = ours(rows, settings)
    assert_same(got, theirs(rows, settings))
    assert fields or np.isfinite(got).all()


def test_a_growth_that_overflows_is_finite():
    rows = random_rows(2)
    rows.logits[:, 3] = 0
    settings = GenerationSettings(exponential_decay_length_penalty=(0, 1e30))
    got = ours(rows, settings, eos=(2, 3, 5))
    assert np.isfinite(got[:, [2, 3, 5]]).all()
    assert (got[:, 3] == 0).all()
    assert {2, 5} & {*got.argmax(-1)}


def test_a_neutral_row_keeps_the_bits_of_its_logits():
    """Next to rows that have every processor of numbers, and with lists that concern other ids."""
    rows = random_rows(3)
    last = np.arange(B) == B - 1
    numbers = dict(
        repetition_penalty=np.where(last, 1, 1.3),
        presence_penalty=np.where(last, 0, 0.5),
        frequency_penalty=np.where(last, 0, 0.7),
        no_repeat_ngram_size=np.where(last, 0, 1),
        min_new_tokens=np.where(last, 0, 50),
        exponential_decay_length_penalty=(0, np.where(last, 1, 1.2)),
    )
    got = ours(rows, GenerationSettings(**numbers))
    assert (got[:-1] != rows.logits[:-1]).any(axis=-1).all()
    np.testing.assert_array_equal(got[-1].view(np.uint32), rows.logits[-1].view(np.uint32))


def test_neutral_values_are_no_processors():
    neutral = dict(NUMBERS, top_h=None)
    neutral |= {name: [number] * B for name, number in NUMBERS.items() if type(number) is not bool}
    neutral |= dict(top_h=None, suppress_tokens=[], bad_words_ids=[], logit_bias={}, sequence_bias=[])
    lengths = np.full(B, 3)
    assert processing_of(GenerationSettings(**neutral), lengths, lengths, EOS) is None
    assert processing_of(GenerationSettings(), lengths, lengths, EOS, always=True) is not None
    for fields in [*ALONE.values(), dict(processors=[lambda ids, lengths, logits: logits])]:
        assert processing_of(GenerationSettings(**fields), lengths, lengths, EOS) is not None


def test_a_forced_id_that_is_suppressed_is_refused():
    lengths = np.full(B, 3)
    for forced, suppressed, refused in [
        (4, [4, 5], True),
        ([4, 5], [5, 4, 6], True),
        ([4, 7], [4, 5], False),
    ]:
        settings = GenerationSettings(forced_eos_token_id=forced, suppress_tokens=suppressed)
        if not refused:
            assert processing_of(settings, lengths, lengths, EOS)
            continue
        with pytest.raises(ValueError, match='forced_eos_token_id is 4.*, which suppress_tokens excludes'):
            processing_of(settings, lengths, lengths, EOS)


def test_a_forced_id_is_not_suppressed_where_the_last_token_is_the_first():
    lengths, limits = np.full(B, 3), np.arange(1, B + 1)
    settings = GenerationSettings(forced_eos_token_id=4, begin_suppress_tokens=4)
    assert processing_of(settings, lengths, limits + 1, EOS)
    with pytest.raises(ValueError, match='is 4, which begin_suppress_tokens excludes'):
        processing_of(settings, lengths, limits, EOS)


@trials(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_have_the_formula_of_openai(seed, presence, frequency):
    """logit - count·frequency - (count > 0)·presence, where count is that of the token in the answer."""
    rows = random_rows(seed)
    settings = GenerationSettings(presence_penalty=presence, frequency_penalty=frequency)
    expected = rows.logits.copy()
    for r in range(B):
        answer = rows.ids[r, rows.prompt_lengths[r] : rows.lengths[r]].tolist()
        for token in range(V):
            expected[r, token] -= answer.count(token) * frequency + (token in answer) * presence
    np.testing.assert_allclose(ours(rows, settings), expected, rtol=1e-5, atol=1e-5)


def test_processors_of_the_user_see_the_ids_and_come_after_the_others():
    def newest_only(ids, lengths, logits):
        newest = jnp.take_along_axis(ids, lengths[:, None] - 1, axis=1)
        return jnp.where(jnp.arange(V) == newest % V, logits.clip(-1e4), -jnp.inf)

    rows = random_rows(1)
    settings = GenerationSettings(
        suppress_tokens=range(8), processors=[newest_only, lambda ids, lengths, logits: 2 * logits]
    )
    got = ours(rows, settings)
    for r in range(B):
        newest = rows.ids[r, rows.lengths[r] - 1] % V
        score = -2e4 if newest < 8 else 2 * rows.logits[r, newest]
        np.testing.assert_array_equal(got[r], np.where(np.arange(V) == newest, score, -np.inf))
    assert (got.max(axis=-1) == -2e4).any()
