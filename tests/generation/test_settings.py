"""Settings are checked when they are created, and read from generation_config.json."""

import dataclasses
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from vipllava_jax.generation.hugging_face_settings import settings_from_hugging_face
from vipllava_jax.generation.settings import (
    GenerationSettings,
    with_overrides,
)


def test_the_defaults_are_greedy():
    settings = GenerationSettings()
    assert (settings.temperature, settings.top_k, settings.top_p, settings.seed) == (0.0, 0, 1.0, None)
    assert (settings.max_new_tokens, settings.eos, settings.stop, settings.keep_stop) == (
        None,
        None,
        (),
        False,
    )


@pytest.mark.parametrize('make', [list, tuple, np.array, jnp.array])
def test_arrays_and_lists_become_tuples(make):
    settings = GenerationSettings(
        max_new_tokens=make([3, 4]),
        temperature=make([0, 1.5]),
        top_k=make([1, 2]),
        seed=make([7, 8]),
        eos=make([5]),
    )
    assert settings == GenerationSettings(
        max_new_tokens=(3, 4), temperature=(0.0, 1.5), top_k=(1, 2), seed=(7, 8), eos=(5,)
    )
    assert hash(settings) == hash(dataclasses.replace(settings))
    assert GenerationSettings(stop='###').stop == ('###',)
    assert GenerationSettings(eos=5).eos == (5,)
    assert GenerationSettings(eos=range(3)).eos == (0, 1, 2)
    assert GenerationSettings(eos=()).eos == ()
    assert isinstance(GenerationSettings(seed=np.uint32(3)).seed, int)


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
        ('keep_stop', 1, 'keep_stop is 1, but must be True or False'),
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


@pytest.mark.parametrize('name', ['min_q', 'beams', 'params'])
def test_an_unknown_setting_is_refused_with_the_known_ones(name):
    with pytest.raises(TypeError, match=f'{name} is not a setting of generation: they are max_new_'):
        with_overrides(None, {name: 1})
    with pytest.raises(TypeError, match=name):
        GenerationSettings(**{name: 1})


def test_importing_the_settings_does_not_import_jax():
    code = 'import sys, vipllava_jax.generation.settings; sys.exit("jax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


@pytest.mark.parametrize(
    ('fields', 'expected'),
    [
        ({}, {}),
        ({'do_sample': False, 'temperature': 0.6, 'top_p': 0.9}, {'top_p': 0.9}),
        ({'temperature': 0.6, 'top_k': 20}, {'top_k': 20}),
        ({'do_sample': True}, {'temperature': 1.0}),
        ({'do_sample': True, 'temperature': 0.6, 'top_p': 0.9}, {'temperature': 0.6, 'top_p': 0.9}),
        ({'do_sample': True, 'temperature': None, 'top_k': None}, {'temperature': 1.0}),
        ({'temperature': 0, 'top_p': 1, 'top_k': 0}, {}),
        ({'max_new_tokens': 700}, {'max_new_tokens': 700}),
        ({'max_new_tokens': 7, 'max_length': 20}, {'max_new_tokens': 7}),
        ({'max_length': 20}, {'max_new_tokens': 20}),
        ({'max_length': 4096}, {}),
        ({'eos_token_id': 2}, {'eos': 2}),
        ({'eos_token_id': [2, 9]}, {'eos': (2, 9)}),
        ({'eos_token_id': -1}, {}),
        ({'eos_token_id': None, 'bos_token_id': 1, 'transformers_version': '4.40', 'num_beams': 4}, {}),
    ],
)
def test_the_settings_of_a_generation_config(fields, expected):
    assert settings_from_hugging_face(fields) == GenerationSettings(**expected)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'temperature': 'hot'}, "temperature: expected a number, found 'hot'"),
        ({'temperature': -0.5, 'do_sample': True}, r'temperature is -0\.5'),
        ({'temperature': -0.5}, r'temperature is -0\.5'),
        ({'temperature': True}, 'temperature: expected a number, found True'),
        ({'top_p': 3}, r'top_p is 3'),
        ({'top_p': float('nan')}, r'top_p is nan'),
        ({'top_k': 2.5}, 'top_k: expected a whole number'),
        ({'top_k': -1}, 'top_k: expected a whole number'),
        ({'do_sample': 'yes'}, 'do_sample: expected true or false'),
        ({'max_new_tokens': -3}, 'max_new_tokens: expected a whole number'),
        ({'max_length': '9'}, 'max_length: expected a whole number'),
        ({'eos_token_id': 'x'}, 'eos_token_id: expected a whole number or a list'),
        ({'eos_token_id': [2, -1]}, 'eos_token_id: expected ids from 0'),
        ({'eos_token_id': [*range(99)]}, 'eos_token_id: expected a whole number or a list of at most 64'),
    ],
)
def test_a_malformed_generation_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=f'generation_config.json: {message}'):
        settings_from_hugging_face(fields)
