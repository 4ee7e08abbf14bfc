"""The OpenAPI document describes the requests that are read and the responses that are written."""

import json

import jsonschema_rs
import pytest

from tests.protocol.bodies import HELLO, chat, completion, regions, tokens
from vipllava_jax.protocol.chat import chat_exchange
from vipllava_jax.protocol.completions import completion_exchange
from vipllava_jax.protocol.endpoints import ENDPOINTS
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.models import model_list
from vipllava_jax.protocol.openapi import openapi
from vipllava_jax.protocol.regions import regions_exchange
from vipllava_jax.protocol.tokenizing import tokenize


@pytest.fixture(scope='module')
def document(served):
    return json.loads(json.dumps(openapi(served)))


def is_valid(document, name, value):
    schema = {'$ref': f'#/components/schemas/{name}', 'components': document['components']}
    return jsonschema_rs.is_valid(schema, value)


def references(value):
    if isinstance(value, dict):
        yield from [value['$ref']] if isinstance(value.get('$ref'), str) else []
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def test_it_has_all_paths_and_every_reference_has_a_target(document):
    assert document['openapi'] == '3.1.0'
    assert {*ENDPOINTS, '/tokenize', '/v1/models', '/health', '/ready', '/metrics'} <= {*document['paths']}
    operations = [way['operationId'] for path in document['paths'].values() for way in path.values()]
    assert len({*operations}) == len(operations)
    found = {*references(document)}
    assert found
    for reference in found:
        assert reference.removeprefix('#/components/schemas/') in document['components']['schemas']


@pytest.mark.parametrize(
    ('fields', 'valid'),
    [
        ({}, True),
        ({'n': None, 'stop': ['x'], 'unknown': 1}, True),
        ({'n': 0}, False),
        ({'temperature': 3}, False),
        ({'messages': []}, False),
        ({'messages': [{'role': 'tool', 'content': 'x'}]}, False),
        ({'response_format': {'type': 'xml'}}, False),
    ],
)
def test_requests_are_described_as_they_are_read(document, fields, valid):
    assert is_valid(document, 'ChatRequest', {'model': 'vip', 'messages': HELLO, **fields}) == valid


def test_responses_are_described_as_they_are_written(document, served, reply_to):
    for name, exchange in {
        'ChatCompletions': chat_exchange(chat(), served, 'a'),
        'Completions': completion_exchange(completion(prompt=['a', 'b']), served, 'a'),
        'Regions': regions_exchange(regions(), served, 'a'),
    }.items():
        body = exchange.body([reply_to(question, [55, 2]) for question in exchange.questions])
        assert is_valid(document, name, body)
        assert not is_valid(document, name, body | {'id': 3})
    assert is_valid(document, 'Models', model_list(served))
    assert is_valid(document, 'Tokenize', tokenize(tokens(prompt='x'), served))
    assert is_valid(document, 'Error', ApiError(400, 'x', 'y').body())
