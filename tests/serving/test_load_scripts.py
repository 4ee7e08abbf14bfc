"""The scripts of benchmarks/ that overload a server, read slowly and look for leaks, with a quick engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.fakes import FakeEngine
from tests.serving.live import live_server
from vipllava_jax.serving.options import ServerOptions

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parents[2] / 'benchmarks'
ROWS, QUEUE = 2, 3
SMALL_REQUESTS = ('--words', '3', '--new', '8', '--side', '28')


@pytest.fixture
def server(model):
    """A server with the real endpoints."""
    options = ServerOptions('tiny', port=0, queue=QUEUE)
    with live_server(options, lambda report: FakeEngine(model, ROWS, QUEUE, pace=0.005)) as live:
        yield live


@pytest.fixture
def run(server, tmp_path):
    """Runs a script -> what it has written to its JSON file."""

    def run(script, *arguments):
        file, url = tmp_path / 'results.json', f'http://127.0.0.1:{server.port}'
        command = [sys.executable, SCRIPTS / script, url, '--json', file, *SMALL_REQUESTS, *arguments]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=120, check=False
        )
        assert file.exists(), done.stderr
        return json.loads(file.read_text())

    return run


def test_overload_counts_answers_and_refusals(run, server):
    found = run('overload.py', '--clients', ROWS + QUEUE, '--before', 1, '--seconds', 2, '--processes', 2)
    full, overloaded = found['full'], found['overloaded']
    assert full['errors'] == overloaded['errors'] == {}
    assert found['answered_per_s'] == pytest.approx(full['answered'] / full['seconds'])
    assert found['offered_per_s'] == pytest.approx(10 * found['answered_per_s'])
    sent = overloaded['answered'] + overloaded['refused']
    assert sent == pytest.approx(2 * found['offered_per_s'], rel=0.4)
    assert overloaded['refused'] > overloaded['answered'] > 0
    assert 0 < overloaded['refusal_ms']['p50'] < overloaded['last_token_ms']['p50']
    server.wait(server.is_idle)


def test_slow_readers_take_their_time_and_miss_nothing(run, server):
    found = run(
        'slow_readers.py', '--readers', 2, '--pause', 0.2, '--slow-new', 6, '--clients', 1, '--seconds', 2
    )
    assert found['slow']['failures'] == []
    for run_of in found['runs'].values():
        assert run_of['answered'] > 0
        assert run_of['errors'] == {}
    assert set(found['p99_change']) == {'first_token', 'per_token', 'last_token'}
    assert min(found['slow']['seconds']) >= 3 * 0.2
    server.wait(server.is_idle)


def test_soak_cancels_a_share_and_compares_what_is_left(run, server):
    found = run('soak.py', '--requests', 80, '--warm-up', 20, '--clients', 2, '--cancel', 0.5)
    assert found['errors'] == {}
    assert 10 <= found['cancelled'] <= 60
    assert server.engine.cancelled > 0
    assert found['before']['memory'] > 0
    assert found['after']['files'] == found['before']['files']


def test_soak_spreads_requests_over_a_time(run):
    found = run('soak.py', '--requests', 10, '--minutes', 0.05, '--warm-up', 1, '--clients', 2, '--cancel', 0)
    assert found['requests'] == 10
    assert 2.6 < found['seconds'] < 10
