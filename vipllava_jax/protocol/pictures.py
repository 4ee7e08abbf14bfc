"""The pictures of a request and the marks on them: read, but not opened."""

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from vipllava_jax.inputs.data_uris import base64_of, decode_base64, is_data_uri
from vipllava_jax.inputs.images import ImageSource, image_size
from vipllava_jax.inputs.mark_fields import read_mark
from vipllava_jax.inputs.marks import Mark
from vipllava_jax.messages import brief
from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.served import Limits

HEADER = 256  # characters of a data URI before its data
NOTHING_FETCHED: Mapping[str, ImageSource] = MappingProxyType({})


def quick_base64(text: str) -> bytes:
    """The bytes of a text in base64, in a quarter of the time of `base64`; ValueError if it is invalid."""
    try:
        return msgspec.convert(text, bytes)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def read_picture(url: str, name: str, limits: Limits, fetched: Mapping[str, ImageSource]) -> ImageSource:
    """The bytes in a data URI, or the picture that `fetched` has for a URL; `name` is the path of the field.

    Raises ApiError for anything else, and for a picture that is too large, before it is decoded.
    """
    if is_data_uri(url):
        _check_length(len(url) - HEADER, limits.picture_bytes // 3 * 4 + 4, name, limits)
        try:
            data = decode_base64(base64_of(url, name), name, quick_base64)
        except ValueError as error:
            raise ApiError(400, str(error), name) from None
        _check_length(len(data), limits.picture_bytes, name, limits)
        return data
    if url in fetched:
        return fetched[url]
    raise ApiError(
        400,
        f'{name} is {brief(url)}: give the picture as a data URI (data:image/png;base64,…), or ask the '
        'operator of the server to allow its host (--allow-image-host)',
        name,
    )


def read_marks(values: Sequence[Any], name: str) -> list[Mark]:
    """The marks on one picture; ApiError names one that is invalid, or on another picture."""
    marks = []
    for n, value in enumerate(values):
        at = f'{name}[{n}]'
        try:
            index, mark = read_mark(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise ApiError(400, f'{at}: {error}', at) from None
        if index:
            raise ApiError(400, f'{at} is on image {index + 1}: put it beside the picture that it is on', at)
        marks.append(mark)
    return marks


def picture_size(picture: ImageSource, name: str, limits: Limits) -> tuple[int, int]:
    """The width and height of a picture, from its header alone; ApiError if it cannot be opened."""
    assert isinstance(picture, bytes | str | os.PathLike)
    try:
        width, height = image_size(picture, name)
    except (ValueError, OSError) as error:
        raise ApiError(400, str(error), name) from None
    if width * height > limits.picture_pixels:
        most = f'{limits.picture_pixels / 1e6:g} million'
        raise ApiError(400, f'{name} has {width}x{height} pixels, expected at most {most}', name)
    return width, height


def _check_length(length: int, most: int, name: str, limits: Limits) -> None:
    if length > most:
        size = f'{limits.picture_bytes / (1 << 20):g} MiB'
        raise ApiError(
            413, f'{name} has more than {size}: make the picture smaller', name, 'picture_too_large'
        )
