"""More requests than the server takes are refused at once, and those that it takes are not disturbed."""

import dataclasses
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tests.serving.live import read_response, read_status, request_bytes
from vipllava_jax.serving import answering

PROMPT = {'tokens': 5}


def test_a_full_queue_refuses_before_the_body_is_read(live):
    server = live(engine={'rows': 2, 'queue': 3}, queue=3)
    server.engine.going.clear()
    accepted = [server.send(**PROMPT) for _ in range(5)]
    server.wait(lambda: len(server.engine.open) == 5)
    seconds = []
    for _ in range(20):
        client = server.connect()
        begin = time.perf_counter()
        client.sendall(request_bytes(b'{', 'Content-Type: application/json\r\nContent-Length: 30000000\r\n'))
        found = read_response(client)
        seconds.append(time.perf_counter() - begin)
        assert (found.status, found.code, found.headers['retry-after']) == (429, 'queue_full', '1')
        client.close()
    assert sorted(seconds)[10] < 0.02
    server.engine.going.set()
    assert [read_status(client) for client in accepted] == [200] * 5
    for client in accepted:
        client.close()
    server.wait(server.is_idle)


def test_one_request_that_fills_the_queue_refuses_others_before_their_bodies_are_read(live):
    server = live(engine={'rows': 2, 'queue': 3}, queue=3)
    server.engine.going.clear()
    many = server.send(prompts=['What?'] * 9, **PROMPT)
    server.wait(lambda: len(server.engine.open) == 5)
    client = server.connect()
    client.sendall(request_bytes(b'{', 'Content-Type: application/json\r\nContent-Length: 30000000\r\n'))
    assert read_response(client).code == 'queue_full'
    client.close()
    assert server.ask(path='/tokenize', prompt='What?').status == 200  # which asks the engine nothing
    server.engine.going.set()
    assert read_status(many) == 200
    many.close()


def test_slow_bodies_take_no_room_from_others(live):
    server = live(engine={'rows': 1, 'queue': 1}, queue=1)
    head = 'Content-Type: application/json\r\nContent-Length: 100\r\n'
    slow = [server.connect() for _ in range(5)]
    for client in slow:
        client.sendall(request_bytes(b'{', head))
    server.wait(lambda: server.server.bodies.used == len(slow))
    assert server.ask(**PROMPT).status == 200
    for client in slow:
        client.close()
    server.wait(server.is_idle)


def test_questions_that_are_left_come_before_those_of_others(live):
    """As long as a request has questions for which the queue had no room, other requests are refused."""
    server = live(engine={'rows': 2, 'queue': 3}, queue=3)
    server.engine.going.clear()
    many = server.send(prompts=['What?'] * 9, **PROMPT)
    server.wait(lambda: len(server.engine.open) == 5)
    (asking,) = server.server.asking
    assert asking.has_more
    stats = server.engine.stats
    server.engine.stats = lambda: dataclasses.replace(stats(), running=0, waiting=0)
    assert server.ask(**PROMPT).code == 'queue_full'
    server.engine.going.set()
    assert read_status(many) == 200
    assert server.ask(**PROMPT).status == 200
    many.close()


def test_a_refusal_keeps_the_connection_if_the_body_is_small(live):
    server = live(engine={'rows': 1, 'queue': 1}, queue=1)
    server.engine.going.clear()
    accepted = [server.send(**PROMPT) for _ in range(2)]
    server.wait(lambda: len(server.engine.open) == 2)
    client = server.connect()
    for _ in range(3):
        client.sendall(request_bytes(b'{"tokens": 5}'))
        assert read_response(client).code == 'queue_full'
    server.engine.going.set()
    assert [read_status(each) for each in accepted] == [200] * 2
    client.sendall(request_bytes(b'{"tokens": 5}'))
    assert read_response(client).status == 200
    for each in (client, *accepted):
        each.close()


def test_refusals_stay_quick_while_many_ask(live):
    server = live(engine={'rows': 4, 'queue': 4, 'pace': 0.01}, queue=4)
    statuses, seconds = [], []

    def ask() -> None:
        for _ in range(10):
            begin = time.perf_counter()
            status = server.ask(tokens=10).status
            statuses.append(status)
            if status == 429:
                seconds.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*statuses} == {200, 429}
    assert statuses.count(200) >= 8
    assert statuses.count(200) + len(seconds) == 240
    assert sorted(seconds)[len(seconds) // 2] < 0.3  # with 24 clients in the same process
    server.wait(server.is_idle)


def test_bodies_that_wait_have_bounded_memory(live):
    server = live(memory_for_bodies=1000)
    server.engine.going.clear()
    padded = json.dumps({'tokens': 1, 'user': 'x' * 600}).encode()
    first = server.connect()
    first.sendall(request_bytes(padded))
    server.wait(lambda: server.engine.open)
    assert server.ask(tokens=1, user='x' * 600).code == 'too_many_bytes'
    server.engine.going.set()
    assert read_status(first) == 200
    assert server.ask(tokens=1, user='x' * 600).status == 200
    first.close()


def test_bodies_that_are_announced_and_not_sent_leave_room_for_others(live):
    server = live(memory_for_bodies=48 << 20)
    length = server.server.options.limits.body_bytes
    head = f'Content-Type: application/json\r\nContent-Length: {length}\r\n'
    clients = [server.connect() for _ in range(50)]
    for client in clients:
        client.sendall(request_bytes(b'{', head))
    server.wait(lambda: server.server.bodies.used == len(clients))
    assert server.ask().status == 200
    for client in clients:
        client.close()
    server.wait(server.is_idle)


def test_a_request_is_asked_before_later_ones_are_read(live, monkeypatch):
    server = live()
    order, read, submit = [], answering.read_request, server.engine.submit
    monkeypatch.setattr(answering, 'read_request', lambda *args: order.append('read') or read(*args))
    monkeypatch.setattr(server.engine, 'submit', lambda question: order.append('asked') or submit(question))
    server.server.threads.shutdown()
    server.server.threads = ThreadPoolExecutor(1)
    going = threading.Event()
    server.server.threads.submit(going.wait)
    clients = [server.send(**PROMPT) for _ in range(3)]
    server.wait(lambda: server.server.threads._work_queue.qsize() == 3)
    going.set()
    assert [read_status(client) for client in clients] == [200] * 3
    assert order == ['read', 'asked'] * 3
    for client in clients:
        client.close()
