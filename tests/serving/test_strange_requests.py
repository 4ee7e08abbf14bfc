"""Bodies that strangers may send to the server with the demo model: each is refused, or answered."""

import ctypes
import gc
import json
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.demo import chat, data_uri, encoded, image_part, scene, sent
from tests.serving.live import read_response

pytestmark = pytest.mark.slow
GROWTH = 64 << 20  # bytes
SMALL = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))


def png(width: int, height: int, data: bytes = b'') -> bytes:
    """A PNG whose header says this size, with this data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    parts = (b'IHDR', header), (b'IDAT', zlib.compress(data)), (b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunk(*part) for part in parts)


def animated() -> bytes:
    frames = [Image.new('P', (40, 30), number) for number in range(5)]
    return encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:])


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(SMALL, 'JPEG', exif=exif)


def with_picture(url: Any, *marks: Any, **fields: Any) -> bytes:
    part = {'type': 'image_url', 'image_url': {'url': url}, 'visual_prompts': [*marks], **fields}
    return json.dumps(chat('What?', part, max_tokens=2)).encode()


def with_fields(**fields: Any) -> bytes:
    return json.dumps(chat(**{'max_tokens': 2, **fields})).encode()


def with_text(text: str) -> bytes:
    """A body in which some JSON stands for the value of a field."""
    return with_fields(temperature='HERE').replace(b'"HERE"', text.encode('utf-8', 'surrogatepass'))


WHOLE = with_picture(data_uri(encoded(SMALL)))
URI = data_uri(encoded(SMALL))
READ = {
    'CMYK': data_uri(encoded(SMALL.convert('CMYK'), 'JPEG'), 'jpeg'),
    'EXIF': data_uri(rotated(), 'jpeg'),
    'animated': data_uri(animated(), 'gif'),
    'grey': data_uri(encoded(SMALL.convert('L'))),
    'one bit': data_uri(encoded(SMALL.convert('1'))),
    'palette with transparency': data_uri(encoded(SMALL.convert('P'), transparency=0)),
    'one pixel': data_uri(encoded(Image.new('RGBA', (1, 1)))),
    'narrow': data_uri(encoded(Image.new('RGB', (3000, 1)))),
    'another type than it says': data_uri(encoded(SMALL, 'JPEG'), 'png'),
}
PICTURES = {
    '50,000 x 50,000': data_uri(png(50_000, 50_000)),
    '50,000 x 50,000 with data': data_uri(png(50_000, 50_000, bytes(20 << 20))),
    '6,400 x 6,400': data_uri(png(6400, 6400, bytes(1000))),
    'width 0': data_uri(png(0, 10)),
    'negative height': data_uri(png(10, 2**32 - 1)),
    'cut off': data_uri(encoded(SMALL, 'BMP')[:100]),
    'cut off JPEG': data_uri(encoded(SMALL, 'JPEG')[:300], 'jpeg'),
    'noise': data_uri(bytes(range(256)) * 4),
    'empty': data_uri(b''),
    'SVG': data_uri(b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'svg+xml'),
    'PDF': data_uri(b'%PDF-1.4\n%%EOF', 'pdf'),
    'PostScript': data_uri(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'eps'),
    'bad base64': 'data:image/png;base64,@@@@',
    'cut off base64': URI[:101],
    'no base64': 'data:image/png,abc',
    'no comma': 'data:image/png;base64',
    'null bytes': 'data:image/png;base64,\0\0',
    'no URL': '',
    'a path': '/etc/passwd',
    'dots': '../../etc/passwd',
    'a file': 'file:///etc/passwd',
    'a device': 'file:///dev/zero',
    'metadata of a cloud': 'http://169.254.169.254/latest/meta-data/',
    'loopback': 'http://127.0.0.1:22/',
    'loopback in hexadecimal': 'http://0x7f000001/',
    'loopback of IPv6': 'http://[::1]/x.png',
    'mapped address': 'http://[::ffff:169.254.169.254]/',
    'a private host': 'https://10.0.0.1/x.png',
    'a redirect': 'https://httpbin.org/redirect-to?url=http://169.254.169.254/',
    'a user': 'http://allowed.example@169.254.169.254/x.png',
    'ftp': 'ftp://example.com/x.png',
    'gopher': 'gopher://127.0.0.1:6379/_FLUSHALL',
    'a line break': 'http://example.com/\r\nHost: other',
    'a number': 7,
    'nothing': None,
    'a list': [URI],
}
MARKS: dict[str, Any] = {
    'no area': {'shape': 'rectangle', 'box': [5, 5, 5, 5]},
    'no width': {'shape': 'ellipse', 'box': [5, 5, 5, 20]},
    'outside': {'shape': 'rectangle', 'box': [1000, 1000, 1200, 1200]},
    'far outside': {'shape': 'rectangle', 'box': [1e300, 0, 1.5e300, 10]},
    'before': {'shape': 'point', 'point': [-500, -500]},
    'three corners of a box': {'shape': 'rectangle', 'box': [1, 2, 3]},
    'text in a box': {'shape': 'rectangle', 'box': ['1', 2, 3, 4]},
    'nothing in a box': {'shape': 'rectangle', 'box': [None, 2, 3, 4]},
    'no shape': {'box': [1, 2, 3, 4]},
    'unknown shape': {'shape': '__import__("os")', 'box': [1, 2, 3, 4]},
    'unknown colour': {'shape': 'rectangle', 'box': [1, 2, 30, 40], 'color': 'url(x)'},
    'unknown field': {'shape': 'rectangle', 'box': [1, 2, 30, 40], 'onload': 'x'},
    'negative width': {'shape': 'rectangle', 'box': [1, 2, 30, 40], 'width': -1},
    'alpha 0': {'shape': 'rectangle', 'box': [1, 2, 30, 40], 'alpha': 0},
    'huge alpha': {'shape': 'rectangle', 'box': [1, 2, 30, 40], 'alpha': 10**30},
    'polygon of one corner': {'shape': 'mask', 'polygon': [[1, 1]]},
    'polygon of lists': {'shape': 'mask', 'polygon': [[[[[1]]]]]},
    'another picture': '2/rectangle:1,2,30,40:red',
    'picture 0': '0/rectangle:1,2,30,40:red',
    'text': 'rectangle',
    'control characters': '\x1b[31mrectangle:1,2,3,4:red\x1b[0m',
    'a number': 5,
    'nothing': None,
}
BODIES = {
    **{f'cut off at {part}/8': WHOLE[: len(WHOLE) * part // 8] for part in range(8)},
    'null': b'null',
    'a list': b'[]',
    'a number': b'1',
    'two objects': b'{}{}',
    'no quotes': b'{model: 1}',
    'a comma too many': b'{"model": "demo",}',
    'UTF-16': WHOLE.decode().encode('utf-16'),
    'Latin-1': with_fields(user='é').replace(rb'\u00e9', b'\xe9'),
    'a mark of byte order': b'\xef\xbb\xbf' + WHOLE,
    'nested lists': b'[' * 100_000,
    'nested objects': b'{"a":' * 100_000,
    'a nested field': with_text('[' * 50_000 + ']' * 50_000),
    'many values': with_text('[' + '0,' * 300_000 + '0]'),
    'NaN': with_text('NaN'),
    'Infinity': with_text('-Infinity'),
    '1e999': with_text('1e999'),
    'many digits': with_text('1' * 10_000),
    'a lone surrogate': with_fields(messages=[{'role': 'user', 'content': 'HERE'}]).replace(
        b'HERE', rb'\ud800'
    ),
    'true for a number': with_text('true'),
    'text for a number': with_text('"1"'),
    'a fraction of a token': with_fields(max_tokens=1.5),
    'a huge number': with_fields(max_tokens=10**30),
    'a negative number': with_fields(max_tokens=-1),
    'a huge seed': with_fields(seed=2**64),
    'huge top_k': with_fields(top_k=10**40),
    'messages of text': with_fields(messages='hello'),
    'a message of text': with_fields(messages=['hello']),
    'a part without a type': with_fields(messages=[{'role': 'user', 'content': [{'text': 'x'}]}]),
    'an unknown part': with_fields(messages=[{'role': 'user', 'content': [{'type': 'video', 'url': URI}]}]),
    'five pictures': json.dumps(chat('?', *[image_part()] * 5)).encode(),
    'an id beyond the vocabulary': with_fields(stop_token_ids=[10**6]),
    'a bias beyond the vocabulary': with_fields(logit_bias={'99999': 1}),
    'a schema that is none': with_fields(structured_outputs={'json': {'type': 'nothing'}}),
    'a schema that refers to itself': with_fields(structured_outputs={'json': {'$ref': '#'}}),
    'a schema elsewhere': with_fields(structured_outputs={'json': {'$ref': 'http://169.254.169.254/'}}),
    'a regex that is none': with_fields(structured_outputs={'regex': '(((('}),
    'a huge regex': with_fields(structured_outputs={'regex': '((a{999}){999}){999}'}),
    'a text that is too long': with_fields(messages=[{'role': 'user', 'content': 'word ' * 100_000}]),
    'the placeholder of pictures': with_fields(messages=[{'role': 'user', 'content': '<image>'}]),
}


@pytest.fixture(scope='module')
def send(demo):
    """The response to a body, as it is sent."""

    def send(body: bytes) -> Any:
        with demo.connect() as client:
            client.sendall(sent(body))
            return read_response(client)

    return send


def resident() -> int:
    """The memory that this process has, in bytes, without what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


def largest() -> int:
    """The largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.fixture(scope='module', autouse=True)
def bounded(demo, send):
    """The memory does not grow by all these tests, and the engine still answers afterwards."""
    for url in [data_uri(encoded(scene())), *READ.values()]:  # what libraries allocate once for a kind
        assert send(with_picture(url)).status == 200
    before, most = resident(), largest()
    yield
    assert send(with_picture(data_uri(encoded(scene())))).status == 200
    demo.wait(demo.is_idle)
    assert resident() - before < GROWTH
    assert largest() - most < 4 * GROWTH  # for a moment


@pytest.mark.parametrize('url', READ.values(), ids=READ)
def test_pictures_are_read(send, url):
    assert send(with_picture(url)).status == 200


def test_a_line_may_be_wider_than_the_picture(send):
    mark = {'shape': 'rectangle', 'box': [1, 2, 30, 40], 'width': 1e9}
    assert send(with_picture(URI, mark)).status == 200


REFUSED = {
    **{f'picture: {name}': with_picture(url) for name, url in PICTURES.items()},
    **{f'mark: {name}': with_picture(URI, mark) for name, mark in MARKS.items()},
    **BODIES,
}


@pytest.mark.parametrize('body', REFUSED.values(), ids=REFUSED)
def test_the_rest_is_refused(send, body):
    response = send(body)
    assert 400 <= response.status < 500
    error = response.json['error']
    assert error['message'].isprintable()
    assert len(error['message']) < 1000
