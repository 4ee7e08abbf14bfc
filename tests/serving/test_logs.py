"""Logs: one line for each request, whatever it holds, and nothing of what was asked unless it is wanted."""

import io
import json
import logging
import time

import pytest

from tests.serving.test_metrics import PROCESSOR, reply
from vipllava_jax.engine.reply import Reply
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.serving.logs import RequestLog, configure

SENT = {
    'id': 'r1',
    'method': 'POST',
    'path': '/v1/chat/completions',
    'status': 200,
    'seconds': 1.75,
    'replies': [],
    'error': None,
    'prompt': 'What is secret?',
    'client': '127.0.0.1:5000',
}


def line(format='json', prompts=False, **fields) -> str:
    """What is written for a request."""
    stream = io.StringIO()
    RequestLog(stream, format, prompts).request(**{**SENT, **fields})
    written = stream.getvalue()
    assert written.endswith('\n')
    assert len(written.splitlines()) == 1
    return written.rstrip('\n')


def test_a_line_of_json():
    fields = json.loads(line(replies=[reply()]))
    moment = fields.pop('time')
    assert abs(time.mktime(time.strptime(moment[:19], '%Y-%m-%dT%H:%M:%S')) - time.mktime(time.gmtime())) < 60
    assert fields == {
        'client': '127.0.0.1:5000',
        'method': 'POST',
        'path': '/v1/chat/completions',
        'status': 200,
        'seconds': 1.75,
        'id': 'r1',
        'first_token_seconds': 0.75,
        'prompt_tokens': 3,
        'cached_tokens': 0,
        'new_tokens': 5,
        'finish_reasons': {'stop': 1},
    }


def test_a_line_of_text():
    _, _, rest = line('text', replies=[reply(lengths=(5, 5, 3))]).partition(' ')
    assert rest == (
        '127.0.0.1:5000 POST /v1/chat/completions 200 seconds=1.75 id=r1 first_token_seconds=0.75 '
        'prompt_tokens=3 cached_tokens=0 new_tokens=13 finish_reasons=length:2,stop:1'
    )


def test_several_replies_are_added_up_and_open_ones_were_aborted():
    cut = Reply(reply().question, PROCESSOR)
    cut.cancel()
    fields = json.loads(line(replies=[reply(), reply(times=(0, 0.1, 0.25, 1)), cut]))
    assert fields['first_token_seconds'] == 0.25
    assert fields['prompt_tokens'] == 9
    assert fields['finish_reasons'] == {'stop': 2, 'aborted': 1}


@pytest.mark.parametrize('format', ['text', 'json'])
def test_prompts_are_written_only_if_asked_for(format):
    error = ApiError(400, 'the role is "secret"', param='messages[0].role')
    assert 'secret' not in line(format, error=error)
    assert 'messages[0].role' in line(format, error=error)
    written = line(format, prompts=True, error=error)
    assert 'What is secret?' in written
    assert 'the role is' in written


def test_the_message_of_an_error_of_the_server_is_written():
    fields = json.loads(line(status=503, error=ApiError(503, 'the engine has failed', code='engine_failed')))
    assert (fields['error'], fields['message']) == ('engine_failed', 'the engine has failed')


def test_fields_of_text_cannot_be_forged():
    written = line('text', path='/v1 200 id=other', client='a b', prompt='x id=other', prompts=True)
    assert '"/v1 200 id=other"' in written
    assert '"a b"' in written
    assert 'prompt="x id=other"' in written


@pytest.mark.parametrize(
    'text',
    [
        'a\nb\r\nc\vd\fe',
        '\x1b[2J\x1b]0;title\x07',
        '\x00\x1c\x1d\x1e\x7f\x85\x9b',
        'a\u2028b\u2029c',
        '\u202eabc\u2066',
        '"quoted" \\ and \\n',
        'ärger 日本 🙂',
        '',
    ],
)
@pytest.mark.parametrize('format', ['text', 'json'])
def test_whatever_a_client_sends_is_one_printable_line(text, format):
    written = line(format, path=text, id=text, method=text, client=text, prompt=text, prompts=True)
    assert written.isprintable()
    if format == 'json':
        assert json.loads(written)['prompt'] == text


def test_a_long_prompt_is_cut():
    assert len(line(prompts=True, prompt='x' * 10**6)) < 11_000


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, 'Broken pipe')


def test_an_output_that_is_gone_does_not_fail_the_request():
    RequestLog(Broken(), 'text', False).request(**SENT)
    closed = io.StringIO()
    closed.close()
    RequestLog(closed, 'json', False).request(**SENT)


# The loggers of libraries


@pytest.fixture
def loggers():
    """Restores the settings of logging."""
    root, access = logging.getLogger(), logging.getLogger('uvicorn.access')
    before = root.handlers[:], root.level, access.disabled
    root.handlers = []
    yield
    root.handlers, root.level, access.disabled = before


def failure(logger):
    try:
        raise ValueError('a\x1b[31m\n2026-01-01T00:00:00 127.0.0.1 POST /forged 200')
    except ValueError:
        logger.exception('Exception in ASGI application\n')


def test_errors_of_uvicorn_are_lines_of_json(loggers, capsys):
    configure('json')
    failure(logging.getLogger('uvicorn.error'))
    logging.getLogger('uvicorn.access').error('GET / 200')
    logging.getLogger('uvicorn.error').info('Started')
    (written,) = capsys.readouterr().err.splitlines()
    fields = json.loads(written)
    assert fields['level'] == 'ERROR'
    assert fields['logger'] == 'uvicorn.error'
    assert fields['message'] == 'Exception in ASGI application'
    assert 'ValueError' in fields['traceback']


def test_errors_of_uvicorn_as_text_look_like_no_request(loggers, capsys):
    configure('text')
    configure('text')  # replaces the former settings
    failure(logging.getLogger('uvicorn.error'))
    first, *others = capsys.readouterr().err.splitlines()
    assert first.endswith(' ERROR uvicorn.error: Exception in ASGI application')
    assert others
    assert all(other.startswith('  ') for other in others)
    assert not any('\x1b' in other for other in others)
