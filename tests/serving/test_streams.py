"""Answers are sent whole or as they arrive, and errors as statuses or as events."""

import json
import time

from tests.serving.live import read_status, read_until, read_what_is_there
from vipllava_jax.engine.question import QuestionError


def test_streamed_text_is_the_whole_text(live):
    server = live()
    whole = server.ask(prompts=['What?', 'Why?'], tokens=7)
    streamed = server.ask(prompts=['What?', 'Why?'], tokens=7, stream=True)
    assert (whole.status, whole.headers['content-type']) == (200, 'application/json')
    assert streamed.headers['content-type'] == 'text/event-stream; charset=utf-8'
    opening, *pieces, closing, done = streamed.events
    assert opening['id'] == streamed.headers['x-request-id']
    assert (closing, done) == ({'tokens': 14}, '[DONE]')
    texts = [''.join(piece['text'] for piece in pieces if piece['index'] == index) for index in (0, 1)]
    assert texts == whole.json['texts']
    assert all(texts)
    server.wait(server.is_idle)


def test_the_first_piece_comes_before_the_last_is_written(live):
    server = live()
    client = server.send(tokens=500, stream=True)
    first = client.recv(65536)
    assert b'HTTP/1.1 200' in first
    server.wait(lambda: len(server.engine.open) == 1)
    client.close()


def test_an_error_before_the_first_piece_is_a_status(live):
    server = live()
    server.engine.going.clear()
    client = server.send(stream=True)
    server.wait(lambda: server.engine.open)
    server.engine.fail_open(QuestionError('the picture is damaged'))
    assert read_status(client) == 400
    server.wait(server.is_idle)
    client.close()


def test_an_error_after_it_is_an_event_and_health_fails(live):
    server = live(engine={'pace': 0.01})
    client = server.send(tokens=400, stream=True)
    first = client.recv(65536)
    begin = time.monotonic()
    server.engine.fail(RuntimeError('the device is gone'))
    assert server.ask('GET', '/health').status == 503
    assert time.monotonic() - begin < 1
    server.wait(server.is_idle)
    found = first + read_what_is_there(client)
    assert b'[DONE]' not in found
    error = json.loads(found.split(b'data: ')[-1].partition(b'\n\n')[0])['error']
    assert (error['code'], error['type']) == ('engine_failed', 'service_unavailable')
    assert server.ask().code == 'engine_failed'
    assert server.ask('GET', '/ready').json == {'status': 'failed'}
    client.close()


def test_all_questions_end_if_one_fails(live):
    server = live()
    server.engine.going.clear()
    client = server.send(prompts=['What?', 'Why?', 'Who?'])
    server.wait(lambda: len(server.engine.open) == 3)
    server.engine.open[1].fail(QuestionError('the picture is damaged'))
    assert read_status(client) == 400
    server.wait(server.is_idle)
    assert server.engine.cancelled == 2
    client.close()


def test_a_stream_without_news_says_that_it_is_waiting(live):
    server = live(quiet=0.05)
    server.engine.going.clear()
    client = server.send(stream=True)
    found = b''
    while found.count(b': waiting\n\n') < 3:
        found += client.recv(65536)
    assert found.startswith(b'HTTP/1.1 200')
    server.engine.fail_open(QuestionError('the picture is damaged'))
    while b'damaged' not in found:
        found += client.recv(65536)
    client.close()


def test_more_questions_than_the_queue_has_room_for_are_asked_as_it_empties(live):
    server = live(engine={'rows': 2, 'queue': 3})
    found = server.ask(prompts=[f'What is {n}?' for n in range(40)], tokens=3)
    assert (found.status, len(found.json['texts'])) == (200, 40)
    streamed = server.ask(prompts=[f'What is {n}?' for n in range(40)], tokens=3, stream=True)
    assert {event['index'] for event in streamed.events[1:-2]} == {*range(40)}
    assert streamed.events[-2] == {'tokens': 120}


def test_a_request_waits_for_the_queue_once_it_has_begun(live):
    server = live(engine={'rows': 1, 'queue': 1})
    server.engine.going.clear()
    long = server.send(prompts=['One?', 'Two?'])
    server.wait(lambda: len(server.engine.open) == 2)
    assert server.ask().code == 'queue_full'
    server.engine.going.set()
    assert read_status(long) == 200
    long.close()


def test_a_fault_of_the_server_is_a_500_without_its_text(live, caplog):
    server = live()
    for fault in ('exchange', 'body'):
        found = server.ask(fault=fault)
        assert (found.status, found.code) == (500, 'internal_error')
        assert b'fault' not in found.body
    assert caplog.text.count('ZeroDivisionError: a') == 2
    server.wait(server.is_idle)


def test_a_picture_in_an_event_holds_up_nobody(live):
    server = live()
    client = server.send(tokens=3, stream=True, drawing=0.5)
    server.wait(lambda: server.engine.asked)
    seconds = []
    for _ in range(20):
        begin = time.monotonic()
        assert server.ask('GET', '/health').status == 200
        seconds.append(time.monotonic() - begin)
        time.sleep(0.02)
    assert max(seconds) < 0.4
    assert b'[DONE]' in read_until(client, b'[DONE]')
    client.close()
