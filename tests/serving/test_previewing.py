"""A preview is what the engine would see; strangers cannot make it more than that."""

import base64
import io
import time

import numpy as np
import pytest
from PIL import Image

from tests.serving.fakes import FakeEngine
from tests.serving.live import live_server
from vipllava_jax.engine.picture_worker import PictureTask, prepare
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.protocol.served import Limits
from vipllava_jax.serving import previews
from vipllava_jax.serving.options import ServerOptions

PATH = '/v1/preview'
MARK = {'shape': 'ellipse', 'box': [10, 20, 60, 50], 'color': 'blue'}


def uri(data: bytes) -> str:
    return f'data:image/png;base64,{base64.b64encode(data).decode()}'


def png(size: tuple[int, int] = (90, 60)) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient('L').resize(size).convert('RGB').save(file, 'PNG')
    return file.getvalue()


@pytest.fixture(scope='module')
def server(model):
    """A server of small pictures, whose process for previews serves all tests."""
    options = ServerOptions('tiny', port=0, limits=Limits(marks=4, picture_pixels=100_000))
    with live_server(options, lambda _: FakeEngine(model)) as server:
        yield server


@pytest.mark.parametrize('fit', ['crop', 'pad', 'squash'])
def test_a_preview_is_what_the_engine_sees(server, model, fit):
    response = server.ask(path=PATH, image=uri(png()), visual_prompts=[MARK], fit=fit, model='tiny')
    found = response.json
    assert response.headers['x-ignored-fields'] == 'model'
    drawn = Image.open(io.BytesIO(base64.b64decode(found['image'].partition(',')[2])))
    task = PictureTask((png(),), ('the image',), ((Mark(**MARK),),), fit)
    expected = prepare(task, model.processor.image_settings)
    np.testing.assert_array_equal(np.asarray(drawn), expected.pixels[0])
    assert found['warnings'] == [*expected.warnings]
    assert bool(found['warnings']) == (fit == 'crop')


@pytest.mark.parametrize(
    ('fields', 'param', 'words'),
    [
        ({'image': 'https://example.com/a.png'}, 'image', 'data URI'),
        ({'image': 'file:///etc/passwd'}, 'image', 'data URI'),
        ({'image': uri(b'no picture')}, 'image', ''),
        ({'image': uri(png((600, 500)))}, 'image', 'expected at most'),
        ({'visual_prompts': [MARK] * 5}, 'visual_prompts', 'expected at most 4'),
        ({'visual_prompts': [{**MARK, 'shape': 'star'}]}, 'visual_prompts[0]', 'unknown shape'),
        ({'visual_prompts': [{**MARK, 'image': 2}]}, 'visual_prompts[0]', 'image 2'),
        ({'visual_prompts': [{**MARK, 'box': [0, 0, 900, 900]}]}, 'visual_prompts[0]', 'outside the picture'),
        ({'image': uri(png()[:-60])}, 'image', ''),
        ({'fit': 'stretch'}, 'fit', ''),
    ],
)
def test_what_is_invalid_is_refused(server, fields, param, words):
    found = server.ask(path=PATH, **{'image': uri(png()), **fields})
    assert found.status == 400
    assert found.json['error']['param'] == param
    assert words in found.json['error']['message']
    server.wait(server.is_idle)


def test_previews_do_not_pile_up(server, monkeypatch):
    monkeypatch.setattr(previews, 'MAX_WAITING', 0)
    begin = time.monotonic()
    found = server.ask(path=PATH, image=uri(png()))
    assert (found.status, found.code) == (429, 'queue_full')
    assert found.headers['retry-after'] == '1'
    assert time.monotonic() - begin < 1
