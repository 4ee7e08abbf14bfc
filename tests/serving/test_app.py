"""What all requests have in common: ids, errors as JSON, logs, and what a server says about itself."""

import re
import threading

import pytest

from tests.serving.live import JSON, live_server
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.serving.options import ServerOptions


@pytest.fixture
def seen(monkeypatch):
    """What was logged and counted, in order."""
    from vipllava_jax.serving import state

    calls = []

    class Recorder:
        def __init__(self, *_: object) -> None:
            pass

        def __getattr__(self, name: str):
            return lambda *values: calls.append((name, *values))

    monkeypatch.setattr(state, 'RequestLog', Recorder)
    monkeypatch.setattr(state, 'Metrics', Recorder)
    return calls


def test_a_request_keeps_its_id_if_it_is_short_and_plain(live):
    server = live()
    assert server.ask(headers={**JSON, 'x-request-id': 'a-1:b.2_c'}).headers['x-request-id'] == 'a-1:b.2_c'
    for id in ('', 'x' * 65, 'a b', '<b>', '\u00e9'):
        found = server.ask(headers={**JSON, 'x-request-id': id}).headers['x-request-id']
        assert re.fullmatch('[0-9a-f]{32}', found)


def test_ignored_fields_are_named(live):
    server = live()
    found = server.ask(**{'metadata': 1, 'a\r\nb: c': 2, 'é' * 100: 3, 'user': 'me'})
    assert found.status == 200
    assert found.headers['x-ignored-fields'].startswith(r'metadata, a\r\nb: c, \xe9\xe9')
    assert found.headers['x-ignored-fields'].endswith(', user')


def test_they_are_named_by_all_endpoints(live):
    found = live().ask(path='/tokenize', prompt='What?', add=True)
    assert (found.status, found.headers['x-ignored-fields']) == (200, 'add')


@pytest.mark.parametrize('name', ['', ' ', 'a ', ' a'])
def test_names_of_white_space_are_no_fault(live, name):
    assert live().ask(**{name: 1}).status == 200


@pytest.mark.parametrize(
    ('method', 'path', 'status', 'code', 'words'),
    [
        ('GET', '/nothing', 404, 'not_found', 'GET /openapi.json'),
        ('GET', '/v1/chat/completions', 405, 'method_not_allowed', 'use POST'),
        ('POST', '/health', 405, 'method_not_allowed', 'GET'),
        ('DELETE', '/v1/models', 405, 'method_not_allowed', 'GET'),
        ('GET', '/v1/models/', 404, None, ''),
        ('GET', '/%1b%5b31m', 404, 'not_found', r'\x1b[31m'),
    ],
)
def test_every_error_is_json(live, method, path, status, code, words):
    server = live()
    found = server.ask(method, path)
    assert (found.status, found.headers['content-type']) == (status, 'application/json')
    error = found.json['error']
    assert {*error} == {'message', 'type', 'param', 'code'}
    assert words in error['message']
    if code:
        assert error['code'] == code
    assert 'x-request-id' in found.headers
    if status == 405:
        assert found.headers['allow']


def test_a_server_describes_itself(live):
    server = live()
    assert server.ask('GET', '/health').json == {'status': 'ready'}
    assert server.ask('GET', '/ready').json == {'status': 'ready'}
    assert {*server.ask('GET', '/version').json} == {'version', 'jax', 'model'}
    assert server.ask('GET', '/version').json['model'] == 'tiny'
    page = server.ask('GET', '/')
    assert page.headers['content-type'].startswith('text/html')
    assert "default-src 'none'" in page.headers['content-security-policy']
    assert server.ask('GET', '/metrics').headers['content-type'].startswith('text/plain')
    for path in ('/v1/models', '/v1/models/tiny', '/openapi.json', '/health'):
        found = server.ask('GET', path)
        assert found.status == 200
        assert found.headers['x-content-type-options'] == 'nosniff'
        assert 'server' not in found.headers


def test_the_socket_answers_while_the_model_is_loaded(protocol):
    go = threading.Event()

    def start(report):
        report('weights', 3, 7)
        go.wait(10)
        raise ValueError('the files are damaged')

    with pytest.raises(ValueError, match='damaged'):
        look_at_loading(start, go)


def look_at_loading(start, go):
    with live_server(ServerOptions('tiny', port=0), start, wait=False) as server:
        server.wait(lambda: server.server.progress != ('weights', 0, 0))
        assert server.ask('GET', '/health').json == {'status': 'loading'}
        ready = server.ask('GET', '/ready')
        assert ready.status == 503
        assert ready.json == {'status': 'loading', 'stage': 'weights', 'done': 3, 'total': 7}
        for method, path in (('POST', '/v1/chat/completions'), ('GET', '/v1/models'), ('POST', '/tokenize')):
            found = server.ask(method, path)
            assert (found.status, found.code, found.headers['retry-after']) == (503, 'loading', '5')
        go.set()
        server.wait(server.loop.is_closed)


def test_requests_are_logged_and_counted(live, seen):
    server = live(log_prompts=True)
    server.ask(prompts=['Why?'], headers={**JSON, 'x-request-id': 'one'})
    server.ask('GET', '/health')
    server.ask(prompts=1)
    server.wait(lambda: len([call for call in seen if call[0] == 'request']) == 2)
    names = [call[0] for call in seen]
    assert names == ['arrived', 'ended', 'request'] * 2
    _, id, method, path, status, seconds, replies, error, prompt, client = seen[2]
    assert (id, method, path, status, error) == ('one', 'POST', '/v1/chat/completions', 200, None)
    assert (len(replies), prompt, client) == (1, 'Why?', '127.0.0.1')
    assert 0 < seconds < 10
    assert seen[1][1] == '/v1/chat/completions'
    assert seen[1][4:] == (200, 'finished')
    assert seen[4][2:] == (None, [], 400, 'error')
    assert isinstance(seen[5][7], ApiError)
    assert seen[5][8] is None


def test_refusals_are_counted_by_their_reason(live, seen):
    server = live(api_keys=('key',))
    server.ask()
    server.wait(lambda: len(seen) == 2)
    assert seen[0] == ('rejected', 'invalid_api_key')
    assert seen[1][0] == 'request'


def test_prompts_are_not_logged_unless_asked_for(live, seen):
    server = live()
    server.ask(prompts=['a secret'])
    server.wait(lambda: len(seen) == 3)
    assert 'secret' not in str(seen[2])


def test_pictures_are_fetched_before_the_questions_are_made(live):
    server = live()

    async def fetch(urls, grow):
        return dict.fromkeys(urls, b'a picture')

    server.server.images.fetch = fetch
    assert server.ask(urls=['https://example.com/a.png']).status == 200

    async def refuse(urls, grow):
        raise ApiError(400, 'not an allowed host')

    server.server.images.fetch = refuse
    assert server.ask(urls=['https://example.com/a.png']).status == 400
    server.wait(server.is_idle)


def test_a_template_of_the_server_is_that_of_requests_without_one(live):
    server = live(template='plain')
    server.engine.going.clear()
    clients = [server.send(), server.send(template='hub')]
    server.wait(lambda: len(server.engine.open) == 2)
    assert {reply.question.question.template for reply in server.engine.open} == {'plain', 'hub'}
    for client in clients:
        client.close()
