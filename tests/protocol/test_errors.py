import pytest

from vipllava_jax.engine.question import QuestionError, QueueFull
from vipllava_jax.protocol.errors import ApiError, api_error


@pytest.mark.parametrize(
    ('error', 'status', 'type', 'code', 'retry_after'),
    [
        (ApiError(413, 'x'), 413, 'request_too_large', None, None),
        (ApiError(418, 'x'), 418, 'invalid_request_error', None, None),
        (ApiError(502, 'x'), 502, 'server_error', None, None),
        (QuestionError('x'), 400, 'invalid_request_error', None, None),
        (QueueFull('x'), 429, 'rate_limit_error', 'queue_full', 1),
        (RuntimeError('secret'), 500, 'server_error', 'internal_error', None),
    ],
)
def test_errors_have_a_status_and_a_body(error, status, type, code, retry_after):
    found = api_error(error)
    assert (found.status, found.type, found.code, found.retry_after) == (status, type, code, retry_after)
    assert {*found.body()['error']} == {'message', 'type', 'param', 'code'}
    assert 'secret' not in found.message


def test_the_part_of_a_question_that_is_at_fault_becomes_a_field():
    params = {'images': 'messages[0].content[0]'}
    assert api_error(QuestionError('x', 'images'), params).param == 'messages[0].content[0]'
    assert api_error(QuestionError('x', 'prompt'), params).param is None


def test_messages_are_printable():
    assert ApiError(400, 'a\x1b[31m\nb').message == 'a\\x1b[31m b'
