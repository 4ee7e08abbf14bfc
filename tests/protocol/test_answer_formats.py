"""The format of an answer, under the names of OpenAI and vLLM."""

import pytest

from tests.protocol.bodies import chat
from vipllava_jax.engine.answer_format import AnswerFormat
from vipllava_jax.protocol.answer_formats import answer_format
from vipllava_jax.protocol.errors import ApiError

SCHEMA = {'type': 'object', 'properties': {'a': {'type': 'integer'}}}


@pytest.mark.parametrize(
    ('fields', 'expected'),
    [
        ({}, None),
        ({'response_format': {'type': 'text'}}, None),
        ({'response_format': {'type': 'json_object'}}, AnswerFormat('json_object')),
        (
            {
                'response_format': {
                    'type': 'json_schema',
                    'json_schema': {'name': 'x', 'strict': True, 'schema': SCHEMA},
                }
            },
            AnswerFormat('json_schema', SCHEMA),
        ),
        ({'structured_outputs': {'choice': ['yes', 'no']}}, AnswerFormat('choice', ('yes', 'no'))),
        ({'structured_outputs': {'regex': '[0-9]+', 'json': None}}, AnswerFormat('regex', '[0-9]+')),
        ({'structured_outputs': {'json': SCHEMA}}, AnswerFormat('json_schema', SCHEMA)),
        (
            {'structured_outputs': {'json': '{"type": "string"}'}},
            AnswerFormat('json_schema', {'type': 'string'}),
        ),
        ({'structured_outputs': {}}, None),
    ],
)
def test_formats(fields, expected):
    assert answer_format(chat(**fields)) == expected


@pytest.mark.parametrize(
    ('fields', 'param'),
    [
        ({'structured_outputs': {'choice': ['a'], 'regex': 'a'}}, 'structured_outputs.regex'),
        (
            {'response_format': {'type': 'json_object'}, 'structured_outputs': {'regex': 'a'}},
            'structured_outputs.regex',
        ),
        ({'structured_outputs': {'json': '{"type":'}}, 'structured_outputs.json'),
        ({'structured_outputs': {'json': ' ' * 32_769 + '{}'}}, 'structured_outputs.json'),
        ({'structured_outputs': {'json': '3'}}, 'structured_outputs.json'),
        ({'structured_outputs': {'json': '{"a":' * 200 + '1' + '}' * 200}}, 'structured_outputs.json'),
        ({'structured_outputs': {'json': '[' * 100_000}}, 'structured_outputs.json'),
    ],
)
def test_what_is_no_format_is_refused(fields, param):
    with pytest.raises(ApiError) as caught:
        answer_format(chat(**fields))
    assert (caught.value.status, caught.value.param) == (400, param)
