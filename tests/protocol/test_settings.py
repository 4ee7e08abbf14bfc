"""The fields of a request become settings of generation; the model's are the defaults."""

import dataclasses

import pytest

from tests.protocol.bodies import chat
from vipllava_jax.generation.settings import GenerationSettings
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.settings import generation_settings, token_limit


def with_defaults(served, **defaults):
    return dataclasses.replace(served, model=served.model._replace(settings=GenerationSettings(**defaults)))


@pytest.mark.parametrize(
    ('fields', 'changes'),
    [
        ({}, {}),
        ({'temperature': 0.5, 'top_p': 0.9, 'min_p': 0.1}, {'temperature': 0.5, 'top_p': 0.9, 'min_p': 0.1}),
        ({'temperature': 1}, {'temperature': 1.0}),
        ({'top_k': -1}, {}),
        ({'top_k': 0}, {}),
        ({'top_k': 5}, {'top_k': 5}),
        (
            {'presence_penalty': 2, 'frequency_penalty': -2},
            {'presence_penalty': 2.0, 'frequency_penalty': -2.0},
        ),
        ({'repetition_penalty': 1.2}, {'repetition_penalty': 1.2}),
        ({'min_tokens': 3}, {'min_new_tokens': 3}),
        ({'seed': 3}, {'seed': 3}),
        ({'seed': -1}, {'seed': 2**32 - 1}),
        ({'seed': 2**63 - 1}, {'seed': 2**32 - 1}),
        ({'stop': 'x'}, {'stop': ('x',)}),
        ({'stop': ['x', '\n', 'x']}, {'stop': ('x', '\n')}),
        ({'stop': 'x', 'include_stop_str_in_output': True}, {'stop': ('x',), 'keep_stop': True}),
        ({'logit_bias': {'5': -100, '007': 1.5}}, {'logit_bias': ((5, -100.0), (7, 1.5))}),
        ({'logit_bias': {}, 'bad_words': [], 'stop': [], 'stop_token_ids': []}, {'logit_bias': ()}),
        ({'stop_token_ids': [9, 5, 9]}, {'eos': (2, 9, 5)}),
        ({'ignore_eos': True}, {'eos': ()}),
        ({'ignore_eos': True, 'stop_token_ids': [9]}, {'eos': (9,)}),
        ({'ignore_eos': False}, {}),
    ],
)
def test_fields_are_settings(served, fields, changes):
    assert generation_settings(chat(**fields), served) == GenerationSettings(**changes)


def test_defaults_are_the_models_without_what_requests_decide(served):
    own = {'temperature': 0.7, 'top_p': 0.8, 'stop': ('##',), 'eos': (7,)}
    served = with_defaults(served, **own, num_return_sequences=3, num_beams=4, max_new_tokens=9, logprobs=2)
    assert generation_settings(chat(), served) == GenerationSettings(**own)
    changed = generation_settings(chat(temperature=0, stop='x', stop_token_ids=[9], n=2, top_p=1), served)
    assert changed == GenerationSettings(stop=('##', 'x'), eos=(7, 9))


def test_several_answers_need_a_temperature(served):
    assert generation_settings(chat(temperature=1), served, answers=3).num_return_sequences == 3
    warm = with_defaults(served, temperature=0.7)
    assert generation_settings(chat(), warm, answers=3).num_return_sequences == 3
    for request, model, reason in (
        (chat(), served, 'is the default of the model'),
        (chat(temperature=0), warm, 'is asked for'),
    ):
        with pytest.raises(ApiError, match=f'n is 3, but at temperature 0, which {reason}') as caught:
            generation_settings(request, model, answers=3)
        assert (caught.value.status, caught.value.param) == (400, 'n')


@pytest.mark.parametrize(
    ('fields', 'param', 'message'),
    [
        ({'stop': ['a', 'b', 'c', 'd', 'e']}, 'stop', 'stop has 5 strings, expected at most 4'),
        ({'logit_bias': {'x': 1}}, 'logit_bias', "the key 'x': expected the id of a token"),
        ({'logit_bias': {'٣': 1}}, 'logit_bias', 'expected the id of a token'),
        ({'logit_bias': {'-5': 1}}, 'logit_bias', 'expected the id of a token'),
        ({'logit_bias': {'400': 1}}, 'logit_bias', 'the id 400, but the vocabulary ends at 399'),
        ({'stop_token_ids': [400]}, 'stop_token_ids', 'the id 400, but the vocabulary ends at 399'),
    ],
)
def test_what_the_model_cannot_do_is_refused(served, fields, param, message):
    with pytest.raises(ApiError) as caught:
        generation_settings(chat(**fields), served)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in caught.value.message


def test_too_many_answers_are_refused(served):
    with pytest.raises(ApiError, match='n is 17, expected at most 16'):
        generation_settings(chat(temperature=1), served, answers=17)


def test_bad_words_are_banned_with_and_without_a_space_before_them(served):
    tokenizer = served.model.processor.tokenizer
    words = generation_settings(chat(bad_words=['the', ' cat', 'the']), served).bad_words_ids
    texts = [tokenizer.backend.decode([35, *ids], skip_special_tokens=False) for ids in words]
    start = tokenizer.backend.decode([35], skip_special_tokens=False)
    assert [text.removeprefix(start) for text in texts] == ['the', ' the', ' cat']


def test_the_newer_name_of_the_limit_counts():
    assert token_limit(chat()) == (None, 'max_tokens')
    assert token_limit(chat(max_tokens=5)) == (5, 'max_tokens')
    assert token_limit(chat(max_tokens=5, max_completion_tokens=7)) == (7, 'max_completion_tokens')
