"""The socket of a server is bound at once, or a message says why not."""

import pytest

from vipllava_jax.serving import sockets
from vipllava_jax.serving.options import ServerOptions


def test_a_socket_that_was_left_over_is_replaced_but_no_other_file(tmp_path):
    path = tmp_path / 'socket'
    sockets.bind_path(str(path)).close()
    sockets.bind_path(str(path)).close()
    path.unlink()
    path.write_text('precious')
    with pytest.raises(ValueError, match='give another path'):
        sockets.bind_path(str(path))
    assert path.read_text() == 'precious'
    with pytest.raises(ValueError, match='No such file or directory'):
        sockets.bind_path(str(tmp_path / 'none' / 'socket'))


def test_a_port_in_use_and_an_unknown_address_are_refused():
    with sockets.bind_port('127.0.0.1', 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f'port {port} of 127.0.0.1 is in use: .* --port'):
            sockets.bind_port('127.0.0.1', port)
    with pytest.raises(ValueError, match='is not an address'):
        sockets.bind_port('no-such-host.invalid', 0)
    with pytest.raises(ValueError, match='cannot listen'):
        sockets.bind_port('192.0.2.1', 0)


def test_urls_are_those_that_clients_need():
    with sockets.bind_port('127.0.0.1', 0) as bound:
        port = bound.getsockname()[1]
        assert sockets.url_of(bound, ServerOptions('tiny')) == f'http://127.0.0.1:{port}'
        assert sockets.url_of(bound, ServerOptions('tiny', host='::1')) == f'http://[::1]:{port}'
