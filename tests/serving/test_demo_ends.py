"""Clients that leave the demo model, and the end of its server, while answers are generated."""

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.serving.demo import HEADERS, chat, image_part, sent
from tests.serving.fakes import PATH
from tests.serving.live import Response
from tests.serving.test_disconnects import leave

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
OPTIONS = ('--dtype', 'float32', '--rows', '4', '--slots', '512', '--max-model-len', '512')


def resident() -> int:
    """The memory of this process in bytes."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def test_clients_leave_at_random_points(demo):
    rng = random.Random(0)
    body = chat('What?', image_part(1), max_tokens=300, ignore_eos=True)
    assert demo.ask(headers=HEADERS, **{**body, 'max_tokens': 4}).status == 200
    before, cancelled = resident(), demo.engine.stats().cancelled
    for number in range(20):
        data = json.dumps({**body, 'stream': number % 2 == 0}).encode()
        request = sent(data)
        client = demo.connect()
        client.sendall(request if number % 4 else request[: rng.randrange(len(request))])
        time.sleep(rng.uniform(0, 0.5))
        leave(client, rudely=rng.random() < 0.5)
    demo.wait(demo.is_idle)
    stats = demo.engine.stats()
    assert (stats.running, stats.waiting, stats.preparing) == (0, 0, 0)
    assert 10 <= stats.cancelled - cancelled <= 15
    assert resident() - before < 64 << 20
    assert demo.ask(headers=HEADERS, **{**body, 'max_tokens': 4}).status == 200


@pytest.fixture(scope='module')
def command():
    """The process of `vipllava serve`, with a cache of the programs that this process has compiled."""
    environment = {name: value for name, value in os.environ.items() if name != 'VIPLLAVA_COMPILATION_CACHE'}
    environment['JAX_COMPILATION_CACHE_DIR'] = str(jax.config.jax_compilation_cache_dir)
    process = subprocess.Popen(
        [sys.executable, '-m', 'vipllava_jax', 'serve', '--model', 'demo', '--port', '0', *OPTIONS],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    yield process
    process.kill()
    process.communicate()


def port_of(process: subprocess.Popen[str]) -> int:
    """Reads what the server says until it is ready."""
    assert process.stderr
    for line in process.stderr:
        if ' at http://127.0.0.1:' in line:
            return int(line.rpartition(':')[2])
    raise AssertionError(f'the server has ended with {process.wait()}')


def ask(port: int, **fields: Any) -> Response:
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    with contextlib.closing(connection):
        connection.request('POST', PATH, json.dumps(chat(**fields)), {'Content-Type': 'application/json'})
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read())


def test_sigterm_under_load_loses_no_accepted_answer(demo, command):
    port, answers = port_of(command), []
    fields = {'max_tokens': 60, 'ignore_eos': True}
    threads = [
        threading.Thread(target=lambda n=n: answers.append(ask(port, stream=n % 2 == 0, **fields)))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    command.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    err = command.communicate(timeout=30)[1]
    assert command.returncode == 0
    assert 'Traceback' not in err
    assert [answer.status for answer in answers] == [200] * 12
    for answer in answers:
        if answer.headers.get_content_type() == 'text/event-stream':
            assert answer.events[-1] == '[DONE]'
            assert answer.events[-2]['choices'][0]['finish_reason'] == 'length'
        else:
            assert answer.json['usage']['completion_tokens'] == 60
