"""The settings in generation_config.json are read; what has no counterpart is named."""

import dataclasses

import pytest

from vipllava_jax.generation.hugging_face_settings import (
    READ,
    WITHOUT_COUNTERPART,
    settings_from_hugging_face,
)
from vipllava_jax.generation.refused_settings import REFUSED
from vipllava_jax.generation.settings import GenerationSettings


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
        ({'eos_token_id': None, 'bos_token_id': 1, 'transformers_version': '4.40', 'use_cache': True}, {}),
        ({'num_beams': 4, 'num_return_sequences': 2}, {'num_beams': 4, 'num_return_sequences': 2}),
        (
            {'early_stopping': 'never', 'length_penalty': 2},
            {'early_stopping': 'never', 'length_penalty': 2.0},
        ),
        (
            {'do_sample': True, 'num_return_sequences': 3},
            {'temperature': 1.0, 'num_return_sequences': 3},
        ),
        ({'min_p': 0.1, 'typical_p': 0.9, 'top_h': 0.5}, {'min_p': 0.1, 'typical_p': 0.9, 'top_h': 0.5}),
        ({'epsilon_cutoff': 1e-3, 'eta_cutoff': 2e-3}, {'epsilon_cutoff': 1e-3, 'eta_cutoff': 2e-3}),
        (
            {'repetition_penalty': 1.1, 'no_repeat_ngram_size': 3},
            {'repetition_penalty': 1.1, 'no_repeat_ngram_size': 3},
        ),
        ({'bad_words_ids': [[1, 2], [3]]}, {'bad_words_ids': [[1, 2], [3]]}),
        ({'sequence_bias': [[[1, 2], -1.5], [[3], 2]]}, {'sequence_bias': {(1, 2): -1.5, (3,): 2.0}}),
        ({'suppress_tokens': [1, 2]}, {'suppress_tokens': [1, 2]}),
        (
            {'begin_suppress_tokens': [1], 'forced_eos_token_id': 2},
            {'begin_suppress_tokens': 1, 'forced_eos_token_id': 2},
        ),
        ({'exponential_decay_length_penalty': [5, 1.5]}, {'exponential_decay_length_penalty': (5, 1.5)}),
        (
            {'remove_invalid_values': True, 'renormalize_logits': True},
            {'remove_invalid_values': True, 'renormalize_logits': True},
        ),
        ({'min_new_tokens': 3, 'max_time': 2.5}, {'min_new_tokens': 3, 'max_time': 2.5}),
        ({'stop_strings': '###'}, {'stop': ('###',)}),
        ({'stop_strings': ['a', 'b']}, {'stop': ('a', 'b')}),
    ],
)
def test_the_settings_of_a_generation_config(fields, expected):
    assert settings_from_hugging_face(fields) == GenerationSettings(**expected)


def test_every_setting_that_transformers_has_too_is_read():
    ours = {
        'presence_penalty',
        'frequency_penalty',
        'logit_bias',
        'keep_stop',
        'logprobs',
        'seed',
        'processors',
    }
    ours |= {'prompt_lookup_num_tokens'}  # changes the speed alone, and not every setting allows it
    others = {'max_new_tokens', 'eos', 'stop'}  # are read from several fields, or fields of other names
    assert {field.name for field in dataclasses.fields(GenerationSettings)} == {*READ, *others, *ours}


def test_null_and_neutral_values_are_the_defaults():
    names = [*READ, *WITHOUT_COUNTERPART, 'max_new_tokens', 'max_length', 'eos_token_id', 'stop_strings']
    assert settings_from_hugging_face(dict.fromkeys([*names, 'do_sample'])) == GenerationSettings()
    neutral = {'top_k': 0, 'top_p': 1.0, 'typical_p': 1.0, 'epsilon_cutoff': 0.0, 'eta_cutoff': 0.0}
    neutral |= {'repetition_penalty': 1.0, 'no_repeat_ngram_size': 0, 'length_penalty': 1.0, 'num_beams': 1}
    neutral |= {'num_return_sequences': 1, 'early_stopping': False, 'temperature': 1.0, 'stop_strings': []}
    neutral |= {'remove_invalid_values': False, 'renormalize_logits': False}
    neutral |= {name: values[0] for name, values in WITHOUT_COUNTERPART.items() if values}
    assert settings_from_hugging_face(neutral) == GenerationSettings()


@pytest.mark.parametrize(
    ('fields', 'expected', 'message'),
    [
        ({'num_return_sequences': 3}, {}, 'at temperature 0 all would be equal: 1 is used'),
        (
            {'num_return_sequences': 3, 'temperature': 0, 'do_sample': True},
            {},
            'all would be equal: 1 is used',
        ),
        (
            {'num_return_sequences': 3, 'num_beams': 2},
            {'num_return_sequences': 2, 'num_beams': 2},
            '2 beams give at most 2: 2 is used',
        ),
        (
            {'min_new_tokens': 9, 'max_length': 5},
            {'min_new_tokens': 5, 'max_new_tokens': 5},
            'min_new_tokens is 9, but max_new_tokens 5: 5 is used',
        ),
        ({'guidance_scale': 1.5}, {}, 'guidance_scale is ignored, because guidance compares'),
        ({'forced_bos_token_id': 5}, {}, 'forced_bos_token_id is ignored, because it replaces'),
        (
            {'watermarking_config': {'bias': 2}, 'penalty_alpha': 0.6},
            {},
            'penalty_alpha is .*; watermarking_config is ',
        ),
    ],
)
def test_what_cannot_be_used_is_a_warning(fields, expected, message):
    with pytest.warns(UserWarning, match=f'^a/b: generation_config.json: .*{message}') as warned:
        settings = settings_from_hugging_face(fields, 'a/b')
    assert settings == GenerationSettings(**expected)
    assert len(warned) == 1


def test_each_field_without_a_counterpart_has_a_reason():
    assert WITHOUT_COUNTERPART.keys() <= REFUSED.keys()


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
        ({'num_beams': 2000}, 'num_beams is 2000'),
        ({'num_beams': 0}, 'num_beams is 0'),
        ({'num_return_sequences': 0}, 'num_return_sequences is 0'),
        ({'min_p': [0.1, 0.2]}, 'min_p: expected a number'),
        ({'max_time': 0}, 'max_time is 0'),
        ({'length_penalty': float('inf')}, 'length_penalty is inf'),
        ({'remove_invalid_values': 1}, 'remove_invalid_values: expected true or false'),
        ({'early_stopping': 1}, "early_stopping is 1, but must be True, False or 'never'"),
        ({'early_stopping': {}}, 'early_stopping is '),
        ({'suppress_tokens': [-1]}, r'suppress_tokens is \[-1\]'),
        ({'suppress_tokens': [0] * 70000}, 'suppress_tokens: expected at most 65536 ids'),
        ({'bad_words_ids': 5}, 'bad_words_ids is 5'),
        ({'bad_words_ids': [[0]] * 5000}, 'bad_words_ids: expected at most 4096 sequences'),
        ({'bad_words_ids': [[0] * 65]}, 'bad_words_ids: expected at most 4096 sequences of at most 64 ids'),
        (
            {'sequence_bias': [[[0] * 65, 1]]},
            'sequence_bias: expected at most 4096 sequences of at most 64 ids',
        ),
        ({'sequence_bias': [[]]}, 'sequence_bias holds '),
        ({'sequence_bias': {'x': 1}}, "sequence_bias holds 'x'"),
        ({'exponential_decay_length_penalty': 3}, 'exponential_decay_length_penalty is 3'),
        ({'stop_strings': ['']}, 'stop_strings: expected at most 64 strings of 1 to 1000 characters'),
        ({'stop_strings': ['a'] * 65}, 'stop_strings: expected '),
        ({'stop_strings': ['a' * 1001]}, 'stop_strings: expected '),
        ({'stop_strings': 5}, 'stop_strings: expected .*, found 5'),
        ({'stop_strings': '\ud800'}, 'stop is .*valid Unicode'),
    ],
)
def test_a_malformed_generation_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=f'generation_config.json: {message}'):
        settings_from_hugging_face(fields)


# Fields of transformers that do not change which answers are likely, or are read under another name.
OTHERS = {
    *('max_length', 'max_new_tokens', 'do_sample', 'eos_token_id', 'stop_strings', 'transformers_version'),
    *('pad_token_id', 'bos_token_id', 'decoder_start_token_id', 'output_attentions', 'output_hidden_states'),
    *('output_scores', 'output_logits', 'return_dict_in_generate', 'use_cache', 'cache_implementation'),
    *(
        'cache_config',
        'max_cache_len',
        'low_memory',
        'prefill_chunk_size',
        'compile_config',
        'disable_compile',
    ),
    *('continuous_batching_config', 'is_assistant', 'num_assistant_tokens', 'num_assistant_tokens_schedule'),
    *('assistant_confidence_threshold', 'assistant_early_exit', 'assistant_lookbehind', 'target_lookbehind'),
    *('assistant_ensemble_weight', 'prompt_lookup_num_tokens', 'max_matching_ngram_size', 'use_mtp'),
    *('speculation_type', '_from_model_config'),
}


@pytest.mark.parity
def test_every_field_of_transformers_is_read_or_known():
    from transformers import GenerationConfig

    fields = vars(GenerationConfig())
    unknown = {name for name in fields if not name.startswith('_')} - {*READ, *WITHOUT_COUNTERPART, *OTHERS}
    assert not unknown
    assert settings_from_hugging_face(GenerationConfig().to_dict()) == GenerationSettings()
