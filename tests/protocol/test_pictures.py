"""Pictures are data URIs within limits; marks are checked before anything is drawn."""

import base64

import pytest

from tests.engine.pictures import picture, png
from tests.protocol.bodies import PNG, POINT, URI
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.pictures import picture_size, read_marks, read_picture
from vipllava_jax.protocol.served import Limits

SMALL = Limits(picture_bytes=1000, picture_pixels=1000)


def uri(data: bytes) -> str:
    return 'data:image/png;base64,' + base64.b64encode(data).decode()


def refused(call, *arguments) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    assert caught.value.param.startswith('here')
    return caught.value


@pytest.mark.parametrize(
    'url', [URI, URI.replace('data:', 'DATA:'), URI.replace('image/png', 'text/plain;a=b')]
)
def test_data_uris_are_decoded(url):
    assert read_picture(url, 'here', Limits(), {}) == PNG


@pytest.mark.parametrize(
    ('url', 'message'),
    [
        ('data:image/png,abc', 'expected a data URI in base64'),
        ('data:', 'expected a data URI in base64'),
        (uri(PNG)[:-1], 'not valid base64'),
        (uri(PNG).replace(',', ', '), 'not valid base64'),
        (uri(PNG) + '\n', 'not valid base64'),
        (uri(PNG)[:100] + '\n' + uri(PNG)[100:], 'not valid base64'),
        (uri(PNG)[:100] + '%2B' + uri(PNG)[103:], 'not valid base64'),
        (uri(PNG) + 'é', 'not valid base64'),
        (uri(b'abc') + '=', 'not valid base64'),
        ('', 'as a data URI'),
        ('http://169.254.169.254/latest', '--allow-image-host'),
        ('../../etc/passwd', 'as a data URI'),
        ('x' * 10**6, 'as a data URI'),
    ],
)
def test_everything_else_is_refused(url, message):
    error = refused(read_picture, url, 'here', Limits(), {})
    assert (error.status, error.code) == (400, None)
    assert message in error.message
    assert len(error.message) < 500


def test_large_pictures_are_refused_before_they_are_decoded(monkeypatch):
    assert read_picture(uri(b'x' * 1000), 'here', SMALL, {}) == b'x' * 1000
    assert refused(read_picture, uri(b'x' * 1001), 'here', SMALL, {}).status == 413
    monkeypatch.setattr('vipllava_jax.protocol.pictures.base64_of', None)
    error = refused(read_picture, uri(b'x' * 2000), 'here', SMALL, {})
    assert (error.status, error.code) == (413, 'picture_too_large')


def test_sizes_are_read_from_headers():
    assert picture_size(PNG, 'here', Limits()) == (60, 50)
    assert (
        'here has 60x50 pixels, expected at most 0.001 million'
        in refused(picture_size, PNG, 'here', SMALL).message
    )
    bomb = png(picture((1, 1)))
    bomb = bomb[:16] + (50_000).to_bytes(4, 'big') * 2 + bomb[24:]
    for data in (bomb, b'', b'GIF89a', PNG[:30], b'<svg/>'):
        assert refused(picture_size, data, 'here', Limits()).status == 400


def test_marks_are_text_or_data():
    assert read_marks(['rectangle:1,2,3,4:red', POINT], 'here') == [
        Mark('rectangle', box=(1, 2, 3, 4), color='red'),
        Mark('point', point=(3, 4), color='lime'),
    ]


@pytest.mark.parametrize(
    ('mark', 'message'),
    [
        ({}, 'the mark has no "shape"'),
        (POINT | {'colour': 'red'}, "unknown field 'colour': a mark has shape, box"),
        (POINT | {'image': 2}, 'put it beside the picture that it is on'),
        ('2/point:1,2', 'put it beside the picture that it is on'),
        ('star', 'write SHAPE'),
        (POINT | {'shape': ['point']}, 'unknown shape'),
        (POINT | {'point': [1]}, 'a point has x and y'),
        (POINT | {'point': {'x': 1}}, 'expected numbers'),
        (POINT | {'point': [1, 10**400]}, 'must be finite'),
        (POINT | {'point': [1, True]}, 'expected numbers, found True'),
        (POINT | {'point': [[1], [2]]}, 'expected numbers'),
        ({'shape': 'rectangle', 'box': [5, 5, 5, 5]}, 'is empty'),
        ({'shape': 'mask', 'polygon': [[1, 1, 1, 1, 1, 1]]}, 'polygon'),
        (POINT | {'color': {}}, 'unknown color'),
        (POINT | {'alpha': 1.5}, 'alpha'),
        (POINT | {'width': 3}, 'there is no line'),
        (POINT | {'units': 'inches'}, "units 'inches'"),
    ],
)
def test_invalid_marks_are_refused(mark, message):
    error = refused(read_marks, [POINT, mark], 'here')
    assert (error.status, error.param) == (400, 'here[1]')
    assert message in error.message
