"""The client for servers with OpenAI's API, against a server that answers at a known speed."""

import asyncio
import base64
import io
import json
import threading
from types import SimpleNamespace

import pytest
from aiohttp import web
from PIL import Image

from benchmarks import open_loop

STEP = 0.005  # seconds per token


class Server:
    """Streams answers of as many tokens as asked for; keeps the bodies of requests."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.fault = ''

    async def models(self, request):
        return web.json_response({'data': [{'id': 'a model'}]})

    async def chat(self, request):
        body = await request.json()
        self.bodies.append(body)
        if self.fault == 'status':
            return web.Response(status=429, text='a full\x1b[31m queue')
        response = web.StreamResponse(headers={'Content-Type': 'text/event-stream'})
        await response.prepare(request)

        async def write(**event):
            await response.write(b'data: ' + json.dumps(event).encode() + b'\n\n')

        await write(choices=[{'delta': {'role': 'assistant', 'content': ''}}])
        for _ in range(body['max_tokens']):
            await asyncio.sleep(STEP)
            await write(choices=[{'delta': {'content': 'w '}, 'finish_reason': None}])
        if self.fault == 'event':
            await write(error={'message': 'no memory'})
        elif self.fault != 'end':
            await write(choices=[{'delta': {}, 'finish_reason': 'length'}])
            await write(choices=[], usage={'completion_tokens': body['max_tokens']})
            await response.write(b'data: [DONE]\n\n')
        return response


@pytest.fixture
def server():
    """A server in a thread of its own, with its `url`."""
    handler, ready, loop = Server(), threading.Event(), asyncio.new_event_loop()

    async def start():
        app = web.Application(client_max_size=1 << 24)
        app.router.add_get('/v1/models', handler.models)
        app.router.add_post('/v1/chat/completions', handler.chat)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, '127.0.0.1', 0).start()
        handler.url = f'http://127.0.0.1:{runner.addresses[0][1]}/v1'
        return runner

    def serve():
        runner = loop.run_until_complete(start())
        ready.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(10)
    yield handler
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def client(server, monkeypatch, capsys, tmp_path):
    """Runs the client -> its exit code, output and JSON file."""

    def run(*args):
        file = tmp_path / 'speed.json'
        command = ['open_loop.py', server.url, '--json', file, '--warm-up', 0, '--side', 28, *args]
        monkeypatch.setattr('sys.argv', [str(arg) for arg in command])
        code = open_loop.main()
        captured = capsys.readouterr()
        return SimpleNamespace(
            code=code, out=captured.out, err=captured.err, data=json.loads(file.read_text())
        )

    return run


def test_requests_have_pictures_words_and_lengths(client, server):
    assert client('--requests', 4, '--words', '2-9', '--new', '1-5').code == 0
    pictures = set()
    for body in server.bodies:
        assert body['model'] == 'a model'
        assert body['ignore_eos'] is True
        image, text = body['messages'][0]['content']
        assert 2 <= len(text['text'].split()) <= 9
        assert 1 <= body['max_tokens'] <= 5
        url = image['image_url']['url']
        assert url.startswith('data:image/png;base64,')
        with Image.open(io.BytesIO(base64.b64decode(url.partition(',')[2]))) as picture:
            assert picture.size == (28, 28)
            pictures.add(picture.tobytes())
    assert len(pictures) == 4


def test_one_picture_is_shared_within_a_run_and_new_in_the_next(client, server):
    client('--requests', 3, '--one-picture', '--new', 1, '--repeats', 2)
    urls = [body['messages'][0]['content'][0]['image_url']['url'] for body in server.bodies]
    assert len({*urls[:3]}) == len({*urls[3:]}) == 1
    assert len({*urls}) == 2


def test_times_and_rates_are_those_of_the_server(client):
    ran = client('--requests', 8, '--new', 20)
    (run,) = ran.data['runs']
    assert (run['requests'], run['answered'], run['errors']) == (8, 8, {})
    assert run['seconds'] >= 20 * STEP
    assert run['tokens_per_s'] == pytest.approx(160 / run['seconds'])
    assert STEP * 1e3 <= run['first_token_ms']['p50'] <= run['first_token_ms']['p99']
    assert STEP * 1e3 <= run['per_token_ms']['p50'] < 4 * STEP * 1e3
    assert 20 * STEP * 1e3 <= run['last_token_ms']['p50'] <= run['seconds'] * 1e3
    assert '8 of 8' in ran.out


def test_arrivals_keep_to_their_rate_and_rates_take_turns(client):
    ran = client('--requests', 12, '--new', 1, '--rates', 'max,40', '--repeats', 2)
    assert [run['offered_per_s'] for run in ran.data['runs']] == [None, 40, None, 40]
    assert ran.data['runs'][1]['seconds'] > 0.1  # 0.3 s on average


@pytest.mark.parametrize(
    ('fault', 'message'),
    [
        ('status', 'status 429: a full [31m queue'),
        ('event', 'no memory'),
        ('end', 'ended without a finish_reason'),
    ],
)
def test_errors_are_counted_and_end_with_1(client, server, fault, message):
    server.fault = fault
    ran = client('--requests', 3, '--new', 1)
    assert ran.code == 1
    assert '\x1b' not in ran.out
    assert message in ran.out
    assert '3 x ' in ran.out
    assert [*ran.data['runs'][0]['errors'].values()] == [3]


def test_a_server_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr('sys.argv', ['open_loop.py', 'http://127.0.0.1:9/v1'])
    with pytest.raises(SystemExit, match=r'127.0.0.1:9/v1/models: ClientConnector'):
        open_loop.main()


@pytest.mark.parametrize(
    'args', [['--rates', '0'], ['--words', '9-2'], ['--extra', '[]'], ['--extra', '{'], ['--requests', '0']]
)
def test_invalid_options_are_refused(monkeypatch, capsys, args):
    monkeypatch.setattr('sys.argv', ['open_loop.py', 'http://127.0.0.1:9/v1', *args])
    with pytest.raises(SystemExit) as ended:
        open_loop.main()
    assert ended.value.code == 2
    assert f'argument {args[0]}' in capsys.readouterr().err


def test_percentiles_are_interpolated():
    assert open_loop.percentile([1, 2, 3, 4], 50) == 2.5
    assert open_loop.percentile([1, 2, 3, 4], 100) == 4
    assert open_loop.percentile([7], 99) == 7
