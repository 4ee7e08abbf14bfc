"""What a line is, in both dialects."""

import pytest

from vipllava_jax.batch_files.lines import is_error, is_line, line_id, new_tokens


def response(status, **body):
    return {
        'id': 'batch_req_1',
        'custom_id': 'a',
        'response': {'status_code': status, 'body': body},
        'error': None,
    }


@pytest.mark.parametrize(
    ('line', 'error', 'tokens'),
    [
        ({'id': 'a', 'answer': 'x', 'new_tokens': 3}, False, 3),
        ({'id': 'a', 'answers': ['x', 'y'], 'new_tokens': [3, 4], 'row': {'custom_id': 'b'}}, False, 7),
        ({'id': 'a', 'error': 'wrong'}, True, 0),
        (response(200, usage={'completion_tokens': 5}), False, 5),
        (response(400, error={}), True, 0),
        ({'id': 'batch_req_1', 'custom_id': 'a', 'response': None, 'error': {'code': 'x'}}, True, 0),
    ],
)
def test_lines(line, error, tokens):
    assert is_line(line)
    assert line_id(line) == 'a'
    assert (is_error(line), new_tokens(line)) == (error, tokens)


@pytest.mark.parametrize(
    'record',
    [
        {},
        {'id': 'a'},
        {'id': 3, 'answer': 'x'},
        {'id': 'a', 'answer': 'x', 'error': 'y'},
        {'custom_id': 'a'},
        {'custom_id': 3, 'response': {}, 'error': None},
        {'custom_id': 'a', 'response': {}, 'error': {}},
        {'custom_id': 'a', 'response': 'x', 'error': None},
    ],
)
def test_other_objects_are_no_lines(record):
    assert not is_line(record)
