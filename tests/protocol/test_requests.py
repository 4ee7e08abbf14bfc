"""Whatever a body holds, it is a request or an error that names the field."""

import contextlib
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.bodies import HELLO, POINT, URI, chat, image, regions, text, user
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.requests import (
    ChatRequest,
    CompletionRequest,
    RegionsRequest,
    TokenizeRequest,
    read_request,
    remote_urls,
)

LEAST = {'model': 'vip', 'messages': HELLO}


def refused(data, kind=ChatRequest) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read_request(data if isinstance(data, bytes) else json.dumps(data).encode(), kind)
    assert caught.value.status == 400
    assert caught.value.body()['error']['type'] == 'invalid_request_error'
    return caught.value


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        (b'', 'not JSON'),
        (b'{"model": "vip"', 'truncated'),
        (b'[1]', 'the body is [1]: expected an object'),
        (b'null', 'the body is null: expected an object'),
        (b'{"model": NaN}', 'not JSON'),
        (b'{"model": -Infinity}', 'not JSON'),
        (b'{"temperature": 1e999}', 'out of range'),
        (b'{"n": 1' + b'0' * 5000 + b'}', 'out of range'),
        (b'{"x": "\xff"}', "utf-8' codec"),
        ('{"x": "é"}'.encode('utf-16'), 'not JSON'),
        (b'{"x": "\\ud800 lone"}', 'surrogate'),
        (b'{"x": "\\udc00 lone"}', 'surrogate'),
        (b'{"x": "\\ud800\\u0041"}', 'surrogate'),
        (b'{"x": ' + b'[' * 100_000 + b']' * 100_000 + b'}', 'nested too deeply'),
        (b'{"x": ' + b'[' * 100 + b']' * 100 + b'}', 'nested more than 64 levels'),
        (b'{"x": ' + b'{"a":' * 900 + b'1' + b'}' * 901, 'nested more than 64 levels'),
        (b'{"x": [' + b'[],' * 200_000 + b'[]]}', 'more than 200,000 values'),
        (b'{"model": "vip"} x', 'trailing characters'),
        (b"{'model': 'vip'}", 'not JSON'),
    ],
    ids=range(19),
)
def test_what_is_not_json_is_refused(body, message):
    assert message in str(refused(body))


def test_a_million_marks_are_refused_before_they_take_memory():
    part = image(visual_prompts=[])
    body = json.dumps({'model': 'vip', 'messages': [user(part)]})
    body = body.replace('"visual_prompts": []', '"visual_prompts": [' + '{},' * 10**6 + '{}]').encode()
    tracemalloc.start()
    refused(body)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ('fields', 'param', 'message'),
    [
        ({'model': None}, 'model', 'model is null: expected a string'),
        ({'messages': []}, 'messages', 'messages is []: expected a list of length >= 1'),
        ({'messages': 'Hello?'}, 'messages', "messages is 'Hello?': expected a list"),
        ({'messages': [3]}, 'messages[0]', 'messages[0] is 3: expected an object'),
        ({'messages': [{'role': 'user'}]}, 'messages[0].content', 'messages[0].content is missing: give it'),
        (
            {'messages': [{'role': 'tool', 'content': 'x'}]},
            'messages[0].role',
            "messages[0].role is 'tool': choose system, developer, user, assistant",
        ),
        (
            {'messages': [user({'type': 'input_audio', 'input_audio': {}})]},
            'messages[0].content[0].type',
            "messages[0].content[0].type is 'input_audio': choose text, image_url",
        ),
        (
            {'messages': [user('a', image(url=3))]},
            'messages[0].content[1].image_url.url',
            'messages[0].content[1].image_url.url is 3: expected a string',
        ),
        (
            {'messages': [user(image(fit='stretch'))]},
            'messages[0].content[0].fit',
            'choose crop, pad, squash',
        ),
        ({'messages': [{'role': 'user', 'content': []}]}, 'messages[0].content', 'length >= 1'),
        ({'n': True}, 'n', 'n is true: expected a whole number'),
        ({'n': 2.0}, 'n', 'n is 2.0: expected a whole number'),
        ({'n': '2'}, 'n', "n is '2': expected a whole number"),
        ({'n': 0}, 'n', 'n is 0: expected a whole number >= 1'),
        ({'max_tokens': 0}, 'max_tokens', '>= 1'),
        ({'max_completion_tokens': -3}, 'max_completion_tokens', '>= 1'),
        ({'temperature': 2.01}, 'temperature', 'temperature is 2.01: expected a number <= 2.0'),
        ({'temperature': False}, 'temperature', 'temperature is false: expected a number'),
        ({'top_p': 0}, 'top_p', '> 0'),
        ({'top_k': -2}, 'top_k', '>= -1'),
        ({'min_p': 1.5}, 'min_p', '<= 1'),
        ({'presence_penalty': -2.5}, 'presence_penalty', '>= -2'),
        ({'frequency_penalty': 1e300}, 'frequency_penalty', '<= 2'),
        ({'repetition_penalty': 0}, 'repetition_penalty', '> 0'),
        ({'seed': 10**30}, 'seed', 'expected a whole number'),
        ({'seed': 1.5}, 'seed', 'seed is 1.5: expected a whole number'),
        ({'stop': 5}, 'stop', 'stop is 5: expected a string or a list'),
        ({'stop': ['']}, 'stop[0]', 'length >= 1'),
        ({'stop': 'x' * 257}, 'stop', 'length <= 256'),
        ({'stream': 'yes'}, 'stream', "stream is 'yes': expected true or false"),
        ({'stream_options': {'include_usage': 1}}, 'stream_options.include_usage', 'expected true or false'),
        ({'logit_bias': {'5': 'x'}}, 'logit_bias', 'expected a number'),
        ({'logit_bias': {'5': 101}}, 'logit_bias', '<= 100'),
        ({'logit_bias': [5]}, 'logit_bias', 'expected an object'),
        ({'logprobs': 3}, 'logprobs', 'logprobs is 3: expected true or false'),
        ({'bad_words': ['x' * 65]}, 'bad_words[0]', 'length <= 64'),
        ({'stop_token_ids': [-1]}, 'stop_token_ids[0]', '>= 0'),
        ({'priority': 2**31}, 'priority', '<= 2147483647'),
        (
            {'response_format': {'type': 'xml'}},
            'response_format.type',
            'choose text, json_object, json_schema',
        ),
        ({'response_format': {'type': 'json_schema'}}, 'response_format.json_schema', 'is missing'),
        ({'structured_outputs': {'choice': []}}, 'structured_outputs.choice', 'length >= 1'),
        ({'tools': [{'type': 'function'}]}, 'tools', 'the model was not trained to call tools: leave it out'),
        ({'functions': [{}]}, 'functions', 'tools'),
        ({'tool_choice': 'required'}, 'tool_choice', "tool_choice is 'required', but"),
        ({'audio': {'voice': 'x'}}, 'audio', 'neither hears nor speaks'),
        ({'modalities': ['text', 'audio']}, 'modalities', 'neither hears nor speaks'),
        ({'use_beam_search': True}, 'use_beam_search', 'does not search beams'),
        ({'best_of': 3}, 'best_of', 'does not search beams'),
        ({'adapter': 'cats'}, 'adapter', 'with which it was started'),
    ],
)
def test_an_invalid_field_is_named(fields, param, message):
    error = refused(LEAST | fields)
    assert error.param == param
    assert message in error.message


@pytest.mark.parametrize(
    ('kind', 'fields', 'param'),
    [
        (ChatRequest, {'model': 'vip'}, 'messages'),
        (ChatRequest, {'messages': HELLO}, 'model'),
        (CompletionRequest, {'model': 'vip'}, 'prompt'),
        (CompletionRequest, {'model': 'vip', 'prompt': []}, 'prompt'),
        (CompletionRequest, {'model': 'vip', 'prompt': [5, 6]}, 'prompt[0]'),
        (CompletionRequest, {'model': 'vip', 'prompt': 'x', 'echo': True}, 'echo'),
        (CompletionRequest, {'model': 'vip', 'prompt': 'x', 'suffix': 'y'}, 'suffix'),
        (CompletionRequest, {'model': 'vip', 'prompt': 'x', 'logprobs': True}, 'logprobs'),
        (RegionsRequest, {'model': 'vip', 'image': URI, 'question': 'x'}, 'regions'),
        (RegionsRequest, {'model': 'vip', 'image': URI, 'question': 'x', 'regions': []}, 'regions'),
        (
            RegionsRequest,
            {'model': 'vip', 'image': URI, 'question': 'x', 'regions': [1], 'mode': 'all'},
            'regions[0]',
        ),
        (RegionsRequest, {'model': 'vip', 'image': {}, 'question': 'x', 'regions': [[1]]}, 'image'),
        (RegionsRequest, {'model': 'vip', 'n': 2}, 'n'),
        (TokenizeRequest, {'prompt': 3}, 'prompt'),
    ],
)
def test_other_requests_are_checked_too(kind, fields, param):
    assert refused(fields, kind).param == param


def test_what_is_null_or_harmless_is_not_given():
    names = [name for name in ChatRequest.__struct_fields__ if name not in LEAST]
    harmless = {'tool_choice': 'none', 'modalities': ['text'], 'best_of': 1, 'use_beam_search': False}
    body = json.dumps(LEAST | dict.fromkeys(names) | {'tools': None, 'functions': []} | harmless)
    found, ignored = read_request(body.encode(), ChatRequest)
    assert found == chat()
    assert set(ignored) == {'functions', *harmless}


def test_unknown_fields_are_named_wherever_they_are():
    part = image(x=1)
    part['image_url']['detail'] = 'low'
    message = user('a', part) | {'name': 'Ann'}
    fields = {'messages': [message], 'store': True, 'logit_bias': {'5': 1}, 'absent': None}
    _, ignored = read_request(json.dumps(LEAST | fields).encode(), ChatRequest)
    at = 'messages[0].content[1]'
    assert ignored == (f'{at}.image_url.detail', f'{at}.x', 'messages[0].name', 'store')


def test_names_of_ignored_fields_suit_a_header():
    names = ['x\r\nset-cookie: y', 'ü' * 100, *map(str, range(100))]
    _, ignored = read_request(json.dumps(LEAST | dict.fromkeys(names, 1)).encode(), ChatRequest)
    assert len(ignored) == 20
    assert all(name.isascii() and name.isprintable() and len(name) <= 64 for name in ignored)


def test_the_last_of_equal_keys_counts():
    body = json.dumps(LEAST | {'n': 2}).replace('{', '{"model": "a", "n": "x", ', 1)
    assert read_request(body.encode(), ChatRequest)[0] == chat(n=2)


def test_remote_urls_are_found_once_and_in_order():
    urls = [
        'https://b.org/x.png',
        URI,
        'HTTP://a.org',
        'https://b.org/x.png',
        'ftp://c.org',
        'file:///etc/passwd',
    ]
    request = chat(messages=[user('What?', *map(image, urls)), {'role': 'assistant', 'content': 'x'}, *HELLO])
    assert remote_urls(request) == ('https://b.org/x.png', 'HTTP://a.org')
    assert remote_urls(regions(image='https://a.org/')) == ('https://a.org/',)
    assert remote_urls(regions()) == ()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.text(max_size=5), parts, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.sampled_from(ChatRequest.__struct_fields__), values)
def test_any_value_of_a_field_is_read_or_refused(name, value):
    with contextlib.suppress(ApiError):
        read_request(json.dumps(LEAST | {name: value}).encode(), ChatRequest)


@settings(deadline=None)
@given(st.text())
def test_any_text_of_a_part_is_read(words):
    body = json.dumps(LEAST | {'messages': [user(text(words), image(visual_prompts=[POINT]))]})
    found, ignored = read_request(body.encode(), ChatRequest)
    assert (found.messages[0].content[0].text, ignored) == (words, ())
