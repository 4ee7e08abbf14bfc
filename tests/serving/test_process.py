"""A server process: its socket, its signals, and its end."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.live import JSON, read_status, request_bytes
from vipllava_jax.serving import sockets

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / 'tests/serving/serve_fake.py'
CERTIFICATE = (
    'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost '
    '-addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem'
)
PATH = '/v1/chat/completions'


class Process:
    """A server in a process of its own, as tests/serving/serve_fake.py runs it."""

    def __init__(self, folder: Path, options: dict[str, Any], engine: dict[str, Any]):
        arguments = [str(folder), json.dumps({'port': 0, **options}), json.dumps(engine)]
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.process.communicate()[1]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(':')[2])

    def ask(self, **fields: Any) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request('POST', PATH, json.dumps(fields), JSON)
            response = connection.getresponse()
            return response.status, response.read()

    def status(self, path: str) -> int:
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request('GET', path)
            return connection.getresponse().status

    def end(self) -> tuple[int, str, str]:
        """The exit code, and what was written."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path) -> Iterator[Any]:
    started = []

    def start(engine: dict[str, Any] | None = None, **options: Any) -> Process:
        started.append(Process(tmp_path / 'model', options, engine or {}))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


def in_threads(work: Any, count: int) -> tuple[list[threading.Thread], list[Any]]:
    """Starts threads -> them and the list of their results."""
    results: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: results.append(work(n))) for n in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


def test_sigterm_under_load_loses_no_accepted_answer(start):
    server = start({'rows': 4, 'queue': 20, 'pace': 0.02})
    threads, results = in_threads(lambda n: server.ask(tokens=30, stream=n % 2 == 0), 16)
    time.sleep(0.5)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert server.status('/health') == 200
    assert server.status('/ready') == 503
    assert server.ask()[0] == 503
    for thread in threads:
        thread.join()
    assert [status for status, _ in results] == [200] * 16
    for _, body in results:
        assert body.endswith(b'data: [DONE]\n\n') or json.loads(body)['texts'][0]
    code, out, err = server.end()
    assert (code, out) == (0, '16 asked, 0 cancelled\n')
    assert 'Traceback' not in err


def test_answers_that_take_too_long_end_with_an_error(start):
    server = start({'pace': 0.05}, drain=0.5)
    threads, results = in_threads(lambda n: server.ask(tokens=400, stream=n == 0), 2)
    time.sleep(0.7)
    begin = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert time.monotonic() - begin < 3
    (status, streamed), (other, whole) = sorted(results)
    assert (status, other) == (200, 503)
    for body in (streamed.split(b'data: ')[-1], whole):
        assert json.loads(body)['error']['code'] == 'shutting_down'
    assert server.end()[0] == 0


def test_a_second_signal_ends_at_once(start, tmp_path):
    path = tmp_path / 'socket'
    server = start({'pace': 0.05}, uds=str(path))
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.sendall(request_bytes(b'{"tokens": 400, "stream": true}'))
    assert read_status(client) == 200
    server.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert server.process.poll() is None
    server.process.send_signal(signal.SIGINT)
    assert server.end()[0] == -signal.SIGINT
    assert not path.exists()
    client.close()


def test_an_idle_server_ends_at_once(start):
    server = start()
    client = socket.create_connection(('127.0.0.1', server.port))
    begin = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.end()[:2] == (0, '0 asked, 0 cancelled\n')
    assert time.monotonic() - begin < 10  # most of it is the end of Python, on a busy machine
    client.close()


def test_a_unix_socket_belongs_to_its_user_and_is_removed(start, tmp_path):
    path = tmp_path / 'socket'
    server = start(uds=str(path))
    assert server.url == f'unix:{path}'
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match='another server uses it'):
        sockets.bind_path(str(path))
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.sendall(request_bytes(b'{"tokens": 1}'))
    assert read_status(client) == 200
    client.close()
    server.process.send_signal(signal.SIGTERM)
    assert server.end()[0] == 0
    assert not path.exists()


def test_tls(start, tmp_path):
    cert, key = tmp_path / 'cert.pem', tmp_path / 'key.pem'
    subprocess.run(CERTIFICATE.split(), check=True, capture_output=True, cwd=tmp_path)
    server = start(tls_cert=str(cert), tls_key=str(key))
    assert server.url.startswith('https://')
    trusting = ssl.create_default_context(cafile=str(cert))
    connection = http.client.HTTPSConnection('localhost', server.port, context=trusting, timeout=20)
    with contextlib.closing(connection):
        connection.request('POST', PATH, '{"tokens": 3, "stream": true}', JSON)
        assert connection.getresponse().read().endswith(b'[DONE]\n\n')
    with socket.create_connection(('localhost', server.port)) as plain:
        plain.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
        assert not plain.recv(100).startswith(b'HTTP/1.1 200')
    server.process.send_signal(signal.SIGTERM)
    assert server.end()[0] == 0
