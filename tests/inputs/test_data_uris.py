"""Base64 is decoded in parts, as if it were decoded at once."""

import base64
import binascii

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vipllava_jax.inputs import data_uris


@pytest.mark.parametrize('size', [0, 1, 2, 3, 4, 5, 6, 7, 3 * data_uris.PART // 4, data_uris.PART + 1])
def test_bytes_come_back(size):
    data = bytes(n % 251 for n in range(size))
    uri = f'data:image/png;base64,{base64.b64encode(data).decode()}'
    assert data_uris.decode_data_uri(uri, 'image') == data


@settings(deadline=None)
@given(st.text('AQz+/= \né', max_size=20))
@example('QQ==QUFB')
@example('QUE=QQ==')
@example('QUFBQ')
@example('QUFB=')
@example('QUFB==')
@example('=QUF')
def test_the_same_is_valid_as_at_once(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_uris, 'PART', 4)
        try:
            found = data_uris.decode_base64(text, 'image')
        except ValueError as error:
            found = str(error)
    try:
        expected = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        expected = 'image: the data is not valid base64'
    assert found == expected
