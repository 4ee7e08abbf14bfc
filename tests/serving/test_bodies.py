"""The body of a request is read within limits, and what cannot be JSON is refused before."""

import asyncio

import pytest
from starlette.datastructures import Headers

from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.serving.bodies import BodyMemory, Disconnected, has_body, read_body

KIND = {'content-type': 'application/json'}


def read(parts, headers=KIND, limit=100, seconds=5.0, memory=None):
    """What `read_body` makes of messages; None is a client that sends nothing more."""
    messages = [
        {'type': 'http.request', 'body': part, 'more_body': number < len(parts)} if part is not None else None
        for number, part in enumerate(parts, 1)
    ]

    async def receive():
        message = messages.pop(0) if messages else {'type': 'http.disconnect'}
        if message is None:
            await asyncio.sleep(60)
        return message

    with (memory or BodyMemory(1000)).hold() as grow:
        return asyncio.run(read_body(Headers(headers), receive, limit, seconds, grow))


def refused(status, *args, **kwargs):
    with pytest.raises(ApiError) as error:
        read(*args, **kwargs)
    assert error.value.status == status
    return error.value


def test_the_parts_are_joined():
    assert read([b'{"a":', b'', b' 1}']) == b'{"a": 1}'
    assert (
        read([b'{}'], {'content-type': 'Application/JSON; charset=utf-8', 'content-encoding': 'identity'})
        == b'{}'
    )


@pytest.mark.parametrize('kind', ['', 'text/plain', 'application/jsonx', 'application/json+x', '\x1b[31m'])
def test_only_json_is_read(kind):
    error = refused(415, [b'{}'], {'content-type': kind})
    assert error.message.isprintable()
    refused(415, [b'{}'], {**KIND, 'content-encoding': 'gzip'})


def test_a_body_is_not_larger_than_the_limit():
    assert len(read([b'x' * 50, b'x' * 50])) == 100
    refused(413, [b'x' * 50, b'x' * 51])
    refused(413, [None], {**KIND, 'content-length': '101'})  # before anything has arrived
    refused(413, [None], {**KIND, 'content-length': '9' * 18})


def test_a_slow_body_times_out():
    assert 'within 0.05 seconds' in refused(408, [b'x', None], seconds=0.05).message


def test_a_client_that_is_gone_is_no_error():
    with pytest.raises(Disconnected):
        read([b'x', b''][:0])


def test_the_memory_of_all_bodies_is_bounded():
    memory = BodyMemory(150)
    with memory.hold() as grow:
        grow(100)
        error = refused(429, [None], {**KIND, 'content-length': '51'}, memory=memory)
        assert (error.code, error.retry_after) == ('too_many_bytes', 1)
        refused(429, [b'x' * 30, b'x' * 30], memory=memory)
        assert len(read([b'x' * 50], {**KIND, 'content-length': '50'}, memory=memory)) == 50
        assert memory.used == 100
    assert memory.used == 0


def test_a_declared_length_takes_no_memory_before_the_body_arrives():
    memory, used = BodyMemory(150), []
    headers = Headers({**KIND, 'content-length': '90'})

    async def receive():
        used.append(memory.used)
        return {'type': 'http.request', 'body': b'x' * 30, 'more_body': len(used) < 3}

    with memory.hold() as grow:
        assert len(asyncio.run(read_body(headers, receive, 100, 5.0, grow))) == 90
        assert (used, memory.used) == ([0, 30, 60], 90)


@pytest.mark.parametrize(
    ('headers', 'expected'),
    [
        ({}, False),
        ({'content-length': '0'}, False),
        ({'content-length': '3'}, True),
        ({'transfer-encoding': 'x'}, True),
    ],
)
def test_whether_a_body_follows(headers, expected):
    assert has_body(Headers(headers)) == expected
