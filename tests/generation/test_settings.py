"""Settings are checked when they are created."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from vipllava_jax.generation.refused_settings import REFUSED
from vipllava_jax.generation.setting_checks import COUNTS, NUMBERS
from vipllava_jax.generation.settings import GenerationSettings, with_overrides

FIELDS = {field.name: field.default for field in dataclasses.fields(GenerationSettings)}


def processor(ids, lengths, logits):
    return logits


# A value of each setting, and how it is stored.
STORED = {
    'max_new_tokens': (np.int64(9), 9),
    'min_new_tokens': ((3.0, 0), (3, 0)),
    'max_time': ([1, 2], (1.0, 2.0)),
    'temperature': (np.float32(0.5), 0.5),
    'top_k': (range(1, 3), (1, 2)),
    'top_p': (1, 1.0),
    'min_p': (jnp.array([0.25, 0]), (0.25, 0.0)),
    'typical_p': (0.9, 0.9),
    'epsilon_cutoff': (0, 0.0),
    'eta_cutoff': ([0.5], (0.5,)),
    'top_h': (1, 1.0),
    'repetition_penalty': (np.array([1, 2]), (1.0, 2.0)),
    'presence_penalty': (-1, -1.0),
    'frequency_penalty': ([np.float64(2), 1], (2.0, 1.0)),
    'no_repeat_ngram_size': (jnp.int32(3), 3),
    'bad_words_ids': ([np.array([1, 2]), (3,), range(2)], ((1, 2), (3,), (0, 1))),
    'sequence_bias': ({(1, 2): 3, (4,): -np.inf}, (((1, 2), 3.0), ((4,), -np.inf))),
    'logit_bias': ({'7': 1, 8: np.float32(-2), '8': 3}, ((7, 1.0), (8, 3.0))),
    'suppress_tokens': (np.arange(2), (0, 1)),
    'begin_suppress_tokens': (5, (5,)),
    'forced_eos_token_id': ([6, 6], (6, 6)),
    'exponential_decay_length_penalty': ([np.array([3, 4]), 1.5], ((3, 4), 1.5)),
    'remove_invalid_values': (np.True_, True),
    'renormalize_logits': (jnp.array(True), True),
    'num_return_sequences': (2.0, 2),
    'num_beams': (np.int32(4), 4),
    'length_penalty': (-1, -1.0),
    'early_stopping': (np.False_, False),
    'eos': (np.array([], int), ()),
    'stop': (np.array(['a', 'b']), ('a', 'b')),
    'keep_stop': (True, True),
    'logprobs': (0, 0),
    'seed': (jnp.array([7, 8]), (7, 8)),
    'processors': (processor, (processor,)),
    'prompt_lookup_num_tokens': (np.int64(3), 3),
}
SAMPLED = {'temperature': 1.0, 'num_beams': 4}  # with these, every number of answers is possible


def test_each_setting_is_stored_as_plain_hashable_values():
    assert STORED.keys() == FIELDS.keys()
    for name, (value, expected) in STORED.items():
        stored = getattr(GenerationSettings(**{**SAMPLED, name: value}), name)
        assert (stored, type(stored)) == (expected, type(expected)), name
        parts = stored if isinstance(stored, tuple) else (stored,)
        assert not any(isinstance(part, np.generic) for part in parts), name


def test_stored_settings_are_equal_after_each_kind_of_copy():
    settings = GenerationSettings(**{name: value for name, (value, _) in STORED.items()})
    for other in (
        dataclasses.replace(settings),
        GenerationSettings(**{name: getattr(settings, name) for name in FIELDS}),
        copy.deepcopy(settings),
        pickle.loads(pickle.dumps(dataclasses.replace(settings, processors=()))),
    ):
        assert dataclasses.replace(other, processors=processor) == settings
        assert hash(dataclasses.replace(other, processors=processor)) == hash(settings)


@pytest.mark.parametrize(
    'value',
    [True, [1, True], 'x', ['1'], b'1', bytearray(b'1'), {1: 2}, {1}, [[1]], [[1], [1, 2]], [], [None]],
)
def test_a_number_is_nothing_else(value):
    for name in (*NUMBERS, *COUNTS):
        with pytest.raises(ValueError, match=f'^{name} is .*, but must be '):
            GenerationSettings(**{name: value})


@pytest.mark.parametrize(
    'value', [float('nan'), 1e300, -1e300, 10**400, [0.5, 10**400], 1 + 1j, (x for x in [1])]
)
def test_a_number_is_finite_and_real(value):
    for name in (*NUMBERS, *COUNTS):
        with pytest.raises(ValueError, match=f'^{name} is .*, but must be '):
            GenerationSettings(**{name: value})


@pytest.mark.parametrize(
    'ids',
    [-1, 2**31, 1.5, True, [True, 1], 'x', b'1', [None], [[1], [1, 2]], [[1]], {1}, {}, (i for i in [1])],
)
def test_ids_are_nothing_else(ids):
    of_one_list = ('eos', 'suppress_tokens', 'begin_suppress_tokens', 'forced_eos_token_id')
    lists = dict.fromkeys(of_one_list, ids) | {'bad_words_ids': [[1], ids], 'sequence_bias': [[ids, 1]]}
    for name, value in lists.items():
        with pytest.raises(ValueError, match=f'^{name} '):
            GenerationSettings(**{name: value})


def test_the_default_of_each_setting_is_neutral_and_valid():
    assert GenerationSettings(**FIELDS) == GenerationSettings()
    for name, default in FIELDS.items():
        assert default is not None or getattr(GenerationSettings(**{name: None}), name) is None
        if default is not None:
            with pytest.raises(ValueError, match=f'^{name} is None, but must be '):
                GenerationSettings(**{name: None})


def test_the_defaults_are_greedy():
    settings = GenerationSettings()
    assert (settings.temperature, settings.top_k, settings.top_p, settings.seed) == (0.0, 0, 1.0, None)
    assert (settings.max_new_tokens, settings.eos, settings.stop, settings.keep_stop) == (
        None,
        None,
        (),
        False,
    )


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('max_new_tokens', 0, 'max_new_tokens is 0, but must be a whole number from 1'),
        ('max_new_tokens', 2.5, 'max_new_tokens is 2.5'),
        ('max_new_tokens', True, 'max_new_tokens is True'),
        ('max_new_tokens', [4, 0], 'max_new_tokens is 0'),
        ('temperature', -1, 'temperature is -1, but must be finite and not below 0'),
        ('temperature', float('inf'), 'temperature is inf'),
        ('temperature', None, 'temperature is None'),
        (
            'temperature',
            'warm',
            "temperature is 'warm', but must be .*, or one such number for each row",
        ),
        ('temperature', [[1.0]], 'temperature is a list'),
        ('temperature', [[1.0], [1.0, 2.0]], 'temperature is a list'),
        ('top_k', -2, 'top_k is -2'),
        ('top_k', 2.7, 'top_k is 2.7'),
        ('top_k', 2**31, 'top_k is 2147483648'),
        ('top_k', 10**100, 'top_k is a whole number of 101 digits'),
        ('top_p', 0.0, 'top_p is 0.0, but must be above 0 and at most 1'),
        ('top_p', [1, 1.5], 'top_p is 1.5'),
        ('top_p', float('nan'), 'top_p is nan'),
        ('seed', -1, 'seed is -1, but must be a whole number from 0 to 4294967295'),
        ('seed', 2**32, 'seed is 4294967296'),
        ('eos', -1, 'eos is -1, but must be an id, or ids, from 0'),
        ('eos', 2.0, r'eos is 2\.0'),
        ('eos', [1, -1], r'eos is \[1, -1\]'),
        ('eos', '</s>', "eos is '</s>'"),
        ('eos', [[1]], 'eos is a list'),
        ('eos', True, 'eos is True'),
        ('stop', 3, 'stop is 3, but must be a list of strings that are not empty'),
        ('stop', '', "stop is ''"),
        ('stop', ['a', ''], 'stop is '),
        ('stop', [b'a'], 'stop is '),
        ('stop', '\ud800', 'stop is .*, but must be valid Unicode'),
        ('stop', {'a': 1}, 'stop is '),
        ('keep_stop', 1, 'keep_stop is 1, but must be True or False'),
        ('keep_stop', [True], r'keep_stop is \[True\]'),
        ('max_new_tokens', [], r'max_new_tokens is \[\], but must be .*, or one such number for each row'),
        ('repetition_penalty', 0, 'repetition_penalty is 0, but must be finite and above 0'),
        ('repetition_penalty', [1, 1e-40], 'repetition_penalty is 1e-40'),
        ('presence_penalty', np.inf, 'presence_penalty is inf, but must be finite'),
        ('epsilon_cutoff', 1, 'epsilon_cutoff is 1, but must be at least 0 and below 1'),
        ('num_beams', [2, 2], r'num_beams is \[2, 2\], but must be a whole number .*, for all rows'),
        ('num_beams', 1025, 'num_beams is 1025'),
        ('num_return_sequences', 0, 'num_return_sequences is 0'),
        ('logprobs', -1, 'logprobs is -1'),
        ('early_stopping', 1, "early_stopping is 1, but must be True, False or 'never'"),
        ('early_stopping', 'Never', "early_stopping is 'Never'"),
        ('early_stopping', np.array(['never', 'x']), 'early_stopping is '),
        ('bad_words_ids', [5], 'bad_words_ids holds 5, but must hold lists of one id or more'),
        ('bad_words_ids', [[]], r'bad_words_ids holds \[\]'),
        ('bad_words_ids', ['no'], "bad_words_ids holds 'no'"),
        ('bad_words_ids', {(1,): 2}, 'bad_words_ids is .*, but must be a list of lists of ids'),
        ('sequence_bias', {5: 1.0}, 'sequence_bias holds 5'),
        ('sequence_bias', {(): 1.0}, r'sequence_bias holds \[\]'),
        ('sequence_bias', [[[5], np.nan]], 'sequence_bias holds nan, but a bias must be a number'),
        ('sequence_bias', [[[5], np.inf]], 'sequence_bias holds inf'),
        ('sequence_bias', [[[5], True]], 'sequence_bias holds True'),
        ('sequence_bias', [[5], 1.0], r'sequence_bias holds \[5\], but must be a mapping'),
        ('logit_bias', {'x': 1}, "logit_bias is .*'x'"),
        ('logit_bias', {'9' * 5000: 1}, 'logit_bias is '),
        ('logit_bias', {(1, 2): 1}, 'logit_bias is '),
        ('logit_bias', {(): 1}, 'logit_bias is '),
        ('logit_bias', {True: 1}, r'logit_bias is \[True\]'),
        ('logit_bias', {5: '1'}, "logit_bias holds '1'"),
        ('logit_bias', {5: 1e31}, r'logit_bias holds 1e\+31'),
        ('logit_bias', (1, 2), 'logit_bias holds 1, but must be a mapping from ids to numbers'),
        ('logit_bias', ['ab'], "logit_bias holds 'ab'"),
        ('exponential_decay_length_penalty', 3, 'exponential_decay_length_penalty is 3, but must be a pair'),
        ('exponential_decay_length_penalty', (3,), 'must be a pair'),
        ('exponential_decay_length_penalty', (-1, 1), r'exponential_decay_length_penalty\[0\] is -1'),
        ('exponential_decay_length_penalty', (1, [1, 0]), r'exponential_decay_length_penalty\[1\] is 0'),
        ('processors', 'x', "processors is 'x', but must be functions"),
        ('processors', [print, 1], 'processors is '),
    ],
)
def test_an_invalid_value_is_named_with_its_field(field, value, message):
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**{field: value})


def test_overrides_replace_fields():
    settings = GenerationSettings(temperature=0.5, top_k=3)
    assert with_overrides(settings, {}) == settings
    assert with_overrides(settings, {'top_k': 5}) == GenerationSettings(temperature=0.5, top_k=5)
    assert with_overrides(None, {'seed': 1}) == GenerationSettings(seed=1)
    with pytest.raises(ValueError, match='top_k is -1'):
        with_overrides(settings, {'top_k': -1})


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('x', "^'x' is not a setting: they are max_new_tokens, .*, processors$"),
        ('params', "^'params' is not a setting: they are max_new_tokens"),
        ('typicalp', '^typicalp is not a setting: did you mean typical_p[?]$'),
        ('min-p', '^min-p is not a setting: did you mean min_p[?]$'),
        ('temprature', 'did you mean temperature[?]$'),
        ('do-sample', '^do-sample is not a setting: a temperature above 0 samples'),
        ('x' * 9999, "^'x{80}'… is not a setting: they are"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_or_the_known_ones(name, message):
    for make in (GenerationSettings, lambda **fields: with_overrides(None, fields)):
        with pytest.raises(TypeError, match=message):
            make(**{name: 1})


def test_the_repr_shows_what_differs_from_the_defaults():
    assert repr(GenerationSettings()) == 'GenerationSettings()'
    settings = GenerationSettings(temperature=[0.5, 1], stop='#', eos=())
    assert repr(settings) == "GenerationSettings(temperature=(0.5, 1.0), eos=(), stop=('#',))"
    assert eval(repr(settings)) == settings


@pytest.mark.parametrize('name', sorted(REFUSED))
def test_a_setting_of_other_libraries_is_refused_with_what_to_do(name):
    assert name not in FIELDS
    for make in (GenerationSettings, lambda **fields: with_overrides(None, fields)):
        with pytest.raises(TypeError) as error:
            make(**{name: 1})
        assert str(error.value) == f'{name} is not a setting: {REFUSED[name]}'


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'num_return_sequences': 2}, 'num_return_sequences is 2, but at temperature 0 the 2 answers'),
        ({'num_return_sequences': 2, 'temperature': [1, 0]}, 'at temperature 0'),
        (
            {'num_return_sequences': 3, 'num_beams': 2},
            'num_return_sequences is 3, but 2 beams give at most 2',
        ),
        (
            {'min_new_tokens': 5, 'max_new_tokens': 4},
            '^min_new_tokens is 5, but max_new_tokens is 4: raise max_new_tokens',
        ),
        (
            {'min_new_tokens': [1, 5], 'max_new_tokens': 4},
            '^row 1: min_new_tokens is 5, but max_new_tokens is 4',
        ),
        ({'min_new_tokens': [1, 5], 'max_new_tokens': [9, 4]}, '^row 1: min_new_tokens is 5'),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_both_names(fields, message):
    with pytest.raises(ValueError, match=message):
        GenerationSettings(**fields)


def test_settings_that_only_seem_to_contradict_each_other_are_accepted():
    GenerationSettings(num_return_sequences=2, temperature=[0.1, 1])
    GenerationSettings(num_return_sequences=2, num_beams=2)
    GenerationSettings(min_new_tokens=4, max_new_tokens=4)
    GenerationSettings(min_new_tokens=600)
    GenerationSettings(min_new_tokens=[5, 5, 5], max_new_tokens=[4, 9])  # the number of rows is not known yet


def test_importing_the_settings_does_not_import_jax():
    code = 'import sys, vipllava_jax.generation.settings; sys.exit("jax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
