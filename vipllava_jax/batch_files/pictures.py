"""The pictures of a row: paths, data URIs, base64, or pictures in memory."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vipllava_jax.data.rows import MAX_IMAGES
from vipllava_jax.inputs.data_uris import decode_base64, decode_data_uri, is_data_uri
from vipllava_jax.inputs.image_arrays import is_array
from vipllava_jax.inputs.images import ImageSource
from vipllava_jax.messages import brief

MAX_INLINE = 20 << 20  # bytes of a picture within a row
URL = re.compile(r'[a-z][a-z0-9+.-]*://', re.IGNORECASE)
FORMS = 'a path, a data URI or {"base64": …}'


def read_pictures(fields: Mapping[str, Any], folder: Path | None) -> tuple[ImageSource, ...]:
    """The pictures in `image` or `images`, which are not opened; paths are relative to the folder.

    Without a folder, paths are refused. Raises ValueError, naming the field, for an invalid picture.
    """
    given = [name for name in ('image', 'images') if fields.get(name) is not None]
    if len(given) > 1:
        raise ValueError('there are "image" and "images": write one of them')
    if not given:
        return ()
    (name,) = given
    value = fields[name]
    several = value if isinstance(value, list | tuple) else [value]
    if len(several) > MAX_IMAGES:
        raise ValueError(f'"{name}" holds {len(several)} pictures, expected at most {MAX_IMAGES}')
    is_list = isinstance(value, list | tuple)
    return tuple(
        _read_picture(picture, folder, f'"{name}"[{n}]' if is_list else f'"{name}"')
        for n, picture in enumerate(several)
    )


def inline_bytes(pictures: Iterable[ImageSource]) -> int:
    """How many bytes of a row's pictures lie in memory before they are opened."""
    return sum(len(picture) for picture in pictures if isinstance(picture, bytes))


def _read_picture(value: Any, folder: Path | None, name: str) -> ImageSource:
    if isinstance(value, Mapping):
        if {*value} != {'base64'} or not isinstance(value['base64'], str):
            raise ValueError(f'{name} is {brief(value)}, expected {FORMS}')
        _check_length(value['base64'], name)
        return decode_base64(value['base64'], name)
    if isinstance(value, str) and is_data_uri(value):
        _check_length(value, name)
        return decode_data_uri(value, name)
    if isinstance(value, str | os.PathLike) and value:
        return picture_path(os.fspath(value), folder, name)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, bytes | Image.Image) or is_array(value):
        return value
    raise ValueError(f'{name} is {brief(value)}, expected {FORMS}')


def picture_path(text: str, folder: Path | None, name: str) -> Path:
    """The path of a picture in the folder; ValueError, with the name of the picture, for a URL."""
    if URL.match(text):
        raise ValueError(f'{name} is a URL, {brief(text)}: download the picture and give its path')
    if folder is None:
        raise ValueError(
            f'{name} is a path, {brief(text)}, but paths are not read here: send a data URI or '
            '{"base64": …}'
        )
    return folder / text


def _check_length(text: str, name: str) -> None:
    """Raises ValueError for a picture in base64 that is too large, before it is decoded."""
    if len(text) > MAX_INLINE // 3 * 4 + 100:
        raise ValueError(f'{name} has more than {MAX_INLINE >> 20} MiB: make the picture smaller first')
