"""Any picture that a user may hold to RGB, or to an error that says what is wrong with it."""

import contextlib
import io
import os
import re
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Source = str | os.PathLike[str] | bytes | Image.Image
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'ICO')
LONGEST = 65_535  # pixels of a side: what a JPEG can hold
MARKS = 'vipllava marks'  # in a picture's info: what `marks.draw` drew on it

_opening = threading.Lock()  # warnings.catch_warnings changes a global


@dataclass(frozen=True)
class Drawn:
    """The marks drawn on a picture of this size, each with the pixels it touches."""

    size: tuple[int, int]
    extents: tuple[tuple[str, Box], ...] = ()


def drawn(image: Image.Image) -> Drawn:
    """The marks on a picture; none if it has been resized or cropped since."""
    found = image.info.get(MARKS)
    return found if isinstance(found, Drawn) and found.size == image.size else Drawn(image.size)


def open_image(source: Source, name: str = 'the picture') -> Image.Image:
    """A path, the bytes of a file or a PIL picture -> a new RGB picture, upright, transparency over white.

    Takes the first frame of an animation and scales 16-bit grey to 8. Raises FileNotFoundError or ValueError,
    in one line that names the file (or `name`), for anything that is not a whole picture of bounded size.
    The bound is Pillow's own, `PIL.Image.MAX_IMAGE_PIXELS`: 89 million pixels unless the caller changes it.
    """
    if isinstance(source, Image.Image):
        return _decode(source, name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ValueError(f'{name} is empty: expected the bytes of a picture file')
        with _open(io.BytesIO(source), name) as picture:
            return _decode(picture, name)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f'{name} is a {type(source).__name__}: expected a path, bytes or a PIL picture')
    path = _file(os.fspath(source))
    with path.open('rb') as file, _open(file, repr(str(path))) as picture:
        return _decode(picture, repr(str(path)))


def measure(path: str | os.PathLike[str]) -> tuple[int, int]:
    """The width and height of the RGB picture that a file holds, by its header; raises as `open_image`."""
    path = _file(os.fspath(path))
    with path.open('rb') as file, _open(file, repr(str(path))) as picture:
        width, height = picture.size
        with contextlib.suppress(Exception):
            if picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # it lies on its side
                return height, width
        return width, height


def _file(text: str) -> Path:
    """The path of an existing file with something in it."""
    if re.match(r'[a-z][a-z0-9+.-]+://|data:', text, re.IGNORECASE):
        raise ValueError(f'{text[:80]!r} is a URL: download the picture and give the path of the file')
    if not text or '\0' in text or not os.path.exists(text):
        raise FileNotFoundError(f'no picture at {text!r}: check the path')
    path = Path(text)
    if not path.is_file():
        raise ValueError(f'{text!r} is not a file: expected a picture such as photo.jpg')
    if not path.stat().st_size:
        raise ValueError(f'{text!r} is empty: expected a picture file')
    return path


def _open(file: IO[bytes], name: str) -> Image.Image:
    """Reads the header only, so that a decompression bomb is refused before it is decoded."""
    try:
        Image.init()
        known = [format for format in FORMATS if format in Image.OPEN]
        with _opening, warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            return Image.open(file, formats=known)
    except UnidentifiedImageError:
        raise ValueError(f'{name} is not a picture in a known format ({", ".join(FORMATS)})') from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise ValueError(f'{name} has more than {limit} million pixels: make it smaller first') from None
    except Exception as error:  # a damaged header surfaces as almost any exception
        raise ValueError(f'{name} is damaged ({error}): get a whole copy of it') from error


def _decode(picture: Image.Image, name: str) -> Image.Image:
    """An opened picture of any mode -> RGB, with nothing kept of its metadata but the marks on it."""
    width, height = picture.size
    if not width or not height:
        raise ValueError(f'{name} is {width}x{height}: it has no pixels')
    if max(width, height) > LONGEST or width * height > (Image.MAX_IMAGE_PIXELS or float('inf')):
        raise ValueError(f'{name} is too large, {width}x{height} pixels: make it smaller first')
    marks = drawn(picture)
    try:
        picture.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(f'{name} is damaged or cut short ({error}): get a whole copy of it') from error
    with contextlib.suppress(Exception):  # a picture whose EXIF block is damaged is taken as it lies
        picture = ImageOps.exif_transpose(picture)
    try:
        rgb = _rgb(picture)
    except ValueError as error:
        raise ValueError(f'{name} cannot become RGB ({error}): save it with 8 bits a colour') from error
    rgb.info = {MARKS: marks}
    return rgb


def _rgb(picture: Image.Image) -> Image.Image:
    """Upright pixels of any mode -> RGB; ValueError if their range is unknown."""
    if picture.mode.startswith('I'):  # 16-bit grey, which Pillow's own conversion would clip to white
        levels = np.asarray(picture)
        if levels.min() < 0 or levels.max() > 65_535:
            raise ValueError('its grey levels need more than 16 bits')
        return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert('RGB')
    if picture.mode == 'F':
        raise ValueError('its pixels are floating-point numbers')
    if not picture.has_transparency_data:
        return picture.convert('RGB')
    white = Image.new('RGBA', picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture.convert('RGBA')).convert('RGB')
