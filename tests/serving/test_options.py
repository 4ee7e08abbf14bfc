"""Options that are unsafe or do not go together are refused, with what to do."""

import pytest

from vipllava_jax.serving.options import ServerOptions, is_loopback


def test_the_defaults_are_safe():
    options = ServerOptions('tiny')
    assert is_loopback(options.host)
    assert options.needs_loopback_name
    assert (options.origins, options.image_hosts, options.log_prompts) == ((), (), False)


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '10.1.2.3', 'example.com', '127.0.0.1.example.com', ''])
def test_an_address_that_others_reach_needs_a_key(host):
    with pytest.raises(ValueError, match='--api-key'):
        ServerOptions('tiny', host=host)
    assert not ServerOptions('tiny', host=host, api_keys=('key',)).needs_loopback_name


@pytest.mark.parametrize('host', ['localhost', '127.0.0.1', '::1', '127.3.2.1'])
def test_this_computer_needs_none(host):
    assert ServerOptions('tiny', host=host).needs_loopback_name


def test_a_unix_socket_needs_none():
    assert not ServerOptions('tiny', host='0.0.0.0', uds='/run/socket').needs_loopback_name


@pytest.mark.parametrize('key', ['', 'a b', 'é', 'a\n'])
def test_a_key_is_plain_and_never_shown(key):
    with pytest.raises(ValueError, match='an API key') as error:
        ServerOptions('tiny', api_keys=('good', key))
    assert 'good' not in str(error.value)
    assert 'secret' not in repr(ServerOptions('tiny', api_keys=('secret',)))


@pytest.mark.parametrize(
    'origin',
    ['example.com', 'https://example.com/', 'https://', 'https://a@b', 'http://[', 'null', 'https://é'],
)
def test_an_origin_is_what_browsers_send(origin):
    with pytest.raises(ValueError, match='--allow-origin'):
        ServerOptions('tiny', origins=(origin,))
    ServerOptions('tiny', origins=('https://example.com:8443', 'http://localhost', '*'))


def test_files_of_tls_are_read_at_once(tmp_path):
    with pytest.raises(ValueError, match='no such file of TLS'):
        ServerOptions('tiny', tls_cert=str(tmp_path / 'none.pem'))
    broken = tmp_path / 'broken.pem'
    broken.write_text('-----BEGIN CERTIFICATE-----\n')
    with pytest.raises(ValueError, match='not a certificate with its key'):
        ServerOptions('tiny', tls_cert=str(broken))
    with pytest.raises(ValueError, match='no such file of TLS'):
        ServerOptions('tiny', tls_cert=str(broken), tls_key=str(tmp_path / 'none.pem'))
    with pytest.raises(ValueError, match='needs --tls-cert'):
        ServerOptions('tiny', tls_key=str(broken))
