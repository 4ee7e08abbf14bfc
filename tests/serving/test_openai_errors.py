"""The errors of the openai package, and clients that give up, against the demo model."""

import contextlib
import json

import openai
import pytest

from tests.serving.demo import NAME, chat, data_uri, encoded, image_part, mark_on, scene, sent, user

pytestmark = pytest.mark.slow
LONG = {'max_tokens': 300, 'extra_body': {'ignore_eos': True}}  # for seconds
DAMAGED = {'type': 'image_url', 'image_url': {'url': data_uri(encoded(scene())[:-500])}}
OUTSIDE = {'shape': 'rectangle', 'box': [1000, 1000, 1200, 1200], 'color': 'red'}


def json_schema(schema):
    return {'type': 'json_schema', 'json_schema': {'name': 'answer', 'schema': schema}}


@pytest.mark.parametrize(
    ('fields', 'param'),
    [
        ({'temperature': 'hot'}, 'temperature'),
        ({'temperature': 3}, 'temperature'),
        ({'messages': []}, 'messages'),
        ({'messages': [{'role': 'robot', 'content': 'x'}]}, 'messages[0].role'),
        ({'messages': [{'role': 'user', 'content': None}]}, 'messages[0].content'),
        ({'messages': [user('What is {mark}?')]}, 'messages[0].content[0].text'),
        ({'n': 17}, 'n'),
        ({'n': 2, 'temperature': 0}, 'n'),
        ({'stop': [*'abcde']}, 'stop'),
        ({'max_tokens': 10_000}, 'max_tokens'),
        ({'max_tokens': 0}, 'max_tokens'),
        ({'top_logprobs': 2}, 'top_logprobs'),
        ({'logit_bias': {'x': 1}}, 'logit_bias'),
        ({'tools': [{'type': 'function', 'function': {'name': 'f', 'parameters': {}}}]}, 'tools'),
        ({'modalities': ['text', 'audio']}, 'modalities'),
        ({'extra_body': {'use_beam_search': True}}, 'use_beam_search'),
        ({'extra_body': {'adapter': 'other'}}, 'adapter'),
        ({'extra_body': {'template': 'none'}}, 'template'),
        ({'extra_body': {'structured_outputs': {'choice': []}}}, 'structured_outputs.choice'),
        ({'extra_body': {'structured_outputs': {'choice': [' a']}}}, 'structured_outputs.choice'),
        ({'extra_body': {'structured_outputs': {'regex': '('}}}, 'structured_outputs.regex'),
        ({'response_format': json_schema({'type': 'nothing'})}, 'response_format'),
        ({'messages': [user(' ')]}, 'messages'),
        ({'messages': [user('What?', DAMAGED)]}, 'messages[0].content[0]'),
        ({'messages': [user('What?', image_part(), DAMAGED)]}, 'messages'),
        ({'messages': [user('What?', image_part(1, OUTSIDE))]}, 'messages[0].content[0]'),
        ({'n': 8, 'temperature': 1}, 'n'),
        ({'extra_body': {'bad_words': ['zq' * 30]}}, 'bad_words'),
        ({'extra_body': {'repetition_penalty': 1e-35}}, 'repetition_penalty'),
        ({'extra_body': {'min_tokens': 30}}, 'min_tokens'),
    ],
)
def test_invalid_requests_name_the_field(ask, fields, param):
    with pytest.raises(openai.BadRequestError) as error:
        ask(**fields)
    assert error.value.param == param
    assert error.value.type == 'invalid_request_error'
    assert error.value.request_id


@pytest.mark.parametrize(
    ('path', 'fields', 'param'),
    [
        (
            '/completions',
            {'prompt': 'x', 'response_format': json_schema({'type': 'nothing'})},
            'response_format',
        ),
        ('/completions', {'prompt': 'x', 'n': 8, 'temperature': 1}, 'n'),
        ('/regions', {'image': DAMAGED['image_url']['url']}, 'image'),
        ('/regions', {'structured_outputs': {'regex': '('}}, 'structured_outputs.regex'),
        ('/regions', {'max_tokens': 10_000}, 'max_tokens'),
        ('/preview', {'image': DAMAGED['image_url']['url']}, 'image'),
    ],
)
def test_errors_of_the_engine_name_the_field_of_each_endpoint(client, path, fields, param):
    image = image_part()['image_url']['url']
    about = {'image': image, 'regions': [mark_on(1)], 'question': 'What is {mark}?'}
    body = {'model': NAME, **(about if path == '/regions' else {}), **fields}
    with pytest.raises(openai.BadRequestError) as error:
        client.post(path, cast_to=object, body=body)
    assert error.value.param == param


def test_an_error_of_a_stream_names_the_field(ask):
    with pytest.raises(openai.APIError) as error:
        list(ask('What?', DAMAGED, stream=True))
    assert error.value.param == 'messages[0].content[0]'


def test_a_wrong_key(client):
    with pytest.raises(openai.AuthenticationError) as error:
        client.with_options(api_key='other').models.list()
    assert error.value.code == 'invalid_api_key'


def test_an_unknown_model(client, ask):
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve('other')
    assert error.value.code == 'model_not_found'
    with pytest.raises(openai.NotFoundError):
        ask(model='gpt-4o')
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=NAME, input='x')


def test_a_full_server(demo, client, ask):
    body = json.dumps(chat(max_tokens=300, ignore_eos=True)).encode()
    with contextlib.ExitStack() as others:
        for _ in range(8):
            others.enter_context(demo.connect()).sendall(sent(body))
        demo.wait(lambda: demo.engine.stats().running == 4 and demo.engine.stats().waiting == 4)
        with pytest.raises(openai.RateLimitError) as error:
            ask()
        assert error.value.response.headers['retry-after'] == '1'
    demo.wait(lambda: not demo.server.open)
    assert client.with_options(max_retries=2).chat.completions.create(**chat())


def test_a_draining_server(demo, ask, monkeypatch):
    monkeypatch.setattr(demo.server, 'is_draining', True)
    with pytest.raises(openai.InternalServerError) as error:
        ask()
    assert (error.value.status_code, error.value.code) == (503, 'shutting_down')


def test_a_timeout_frees_the_row(demo, client):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.1).chat.completions.create(**{**chat(), **LONG})
    demo.wait(lambda: not demo.engine.stats().running)


def test_a_stream_that_is_left_frees_the_row(demo, ask):
    with ask(stream=True, **LONG) as stream:
        next(iter(stream))
        assert demo.engine.stats().running == 1
    demo.wait(lambda: not demo.engine.stats().running)
