"""Only those who may call the server do, and web pages cannot pass for them."""

import pytest

from tests.serving.live import JSON

KEYS = ('first-key', 'second-key')


def with_key(key: str) -> dict[str, str]:
    return {**JSON, 'Authorization': key}


def test_every_key_is_accepted(live):
    server = live(api_keys=KEYS)
    for key in (*KEYS, f' {KEYS[0]} '):
        assert server.ask(headers=with_key(f'Bearer {key}')).status == 200
    assert server.ask(headers=with_key(f'bearer {KEYS[1]}')).status == 200


@pytest.mark.parametrize(
    'key',
    [
        '',
        'Bearer',
        'Bearer first',
        'Bearer first-keyx',
        'Basic first-key',
        'first-key',
        'Bearer \u00e9',
        'B ' * 99,
    ],
)
def test_others_are_refused(live, key):
    server = live(api_keys=KEYS)
    for method, path in (('POST', '/v1/chat/completions'), ('GET', '/v1/models'), ('GET', '/nothing')):
        found = server.ask(method, path, headers=with_key(key))
        assert (found.status, found.code) == (401, 'invalid_api_key')
        assert found.headers['www-authenticate'] == 'Bearer'
        assert found.json['error']['type'] == 'authentication_error'
    assert server.engine.asked == 0


def test_probes_need_no_key(live):
    server = live(api_keys=KEYS)
    for path in ('/', '/health', '/ready', '/version', '/metrics'):
        assert server.ask('GET', path, headers={'Host': 'example.com'}).status == 200
    assert server.ask('GET', '/openapi.json').status == 401


@pytest.mark.parametrize('host', ['localhost', 'LOCALHOST:80', '127.0.0.1:8000', '[::1]:8000', '127.8.8.8'])
def test_without_keys_a_request_names_this_computer(live, host):
    assert live().ask('GET', '/v1/models', headers={'Host': host}).status == 200


@pytest.mark.parametrize(
    'host',
    ['', 'example.com', 'localhost.example.com', '127.0.0.1.example.com', '10.0.0.1', '[::2]', 'a:b:c'],
)
def test_a_foreign_name_is_refused(live, host):
    server = live()
    for method, path in (('POST', '/v1/chat/completions'), ('GET', '/'), ('GET', '/health')):
        found = server.ask(method, path, headers={**JSON, 'Host': host})
        assert (found.status, found.code) == (403, 'foreign_host')
    assert server.engine.asked == 0


def test_a_form_of_a_web_page_cannot_ask(live):
    server = live()
    for kind in ('text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', ''):
        found = server.ask(headers={'Content-Type': kind, 'Origin': 'https://evil.example'})
        assert (found.status, found.code) == (415, 'unsupported_media_type')
    assert server.engine.asked == 0


def preflight(server, origin: str):
    headers = {
        'Access-Control-Request-Method': 'POST',
        'Access-Control-Request-Headers': 'authorization, x-y',
    }
    return server.ask('OPTIONS', '/v1/chat/completions', headers={**headers, 'Origin': origin})


def test_pages_of_an_allowed_origin_may_call(live):
    server = live(origins=('https://example.com',), api_keys=KEYS)
    found = preflight(server, 'https://example.com')
    assert (found.status, found.body) == (204, b'')
    assert found.headers['access-control-allow-origin'] == 'https://example.com'
    assert found.headers['access-control-allow-headers'] == 'authorization, x-y'
    assert found.headers['vary'] == 'Origin'
    asked = server.ask(headers={**with_key('Bearer first-key'), 'Origin': 'https://example.com'})
    assert asked.status == 200
    assert asked.headers['access-control-allow-origin'] == 'https://example.com'
    assert 'x-request-id' in asked.headers['access-control-expose-headers']


@pytest.mark.parametrize('origin', ['https://example.com.evil.example', 'null', 'http://example.com', ''])
def test_others_may_not(live, origin):
    server = live(origins=('https://example.com',), api_keys=KEYS)
    found = preflight(server, origin)
    assert 'access-control-allow-origin' not in found.headers
    assert 'access-control-allow-headers' not in found.headers
    asked = server.ask('GET', '/health', headers={'Origin': origin})
    assert 'access-control-allow-origin' not in asked.headers


def test_no_origin_is_allowed_by_default_and_all_by_a_star(live):
    assert 'access-control-allow-origin' not in preflight(live(), 'https://example.com').headers
    found = preflight(live(origins=('*',)), 'https://example.com')
    assert found.headers['access-control-allow-origin'] == 'https://example.com'
