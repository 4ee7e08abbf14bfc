"""Opens pictures of many formats as RGB; a ValueError says what is wrong with one that cannot be."""

import contextlib
import io
import logging
import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from vipllava_jax.inputs.limits import Bounded
from vipllava_jax.inputs.metadata import without_metadata
from vipllava_jax.messages import brief, one_line, printable

ImageSource = str | os.PathLike[str] | bytes | Image.Image
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'ICO')
LONGEST = 65_535  # pixels per side: the limit of JPEG
LARGEST_FILE = 1 << 30  # bytes
MARKS = 'vipllava marks'  # in a picture's info: what `marks.draw` drew on it
MOST_SAMPLES = 270_000_000  # of a JPEG 2000 picture, whose decoder takes 4 bytes for each
STRIP = 1 << 22  # pixels converted at a time
TURNS = {  # by EXIF orientation, what makes the picture upright; 1 needs nothing
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_warning = threading.Lock()  # warnings.catch_warnings changes global state
logging.getLogger('PIL').addHandler(logging.NullHandler())  # otherwise its log messages go to stderr


@dataclass(frozen=True)
class DrawnMarks:
    """The marks drawn on a picture of this size, each with the bounds of its pixels."""

    size: tuple[int, int]
    extents: tuple[tuple[str, Box], ...] = ()


def drawn_marks(image: Image.Image) -> DrawnMarks:
    """The marks on a picture; none if it has been resized or cropped since."""
    found = image.info.get(MARKS)
    return found if isinstance(found, DrawnMarks) and found.size == image.size else DrawnMarks(image.size)


def open_image(source: ImageSource, name: str = 'the picture') -> Image.Image:
    """A path, the bytes of a file or a PIL picture -> a new RGB picture, upright, transparency on white.

    Takes the first frame of an animation and scales 16-bit grey to 8. Raises FileNotFoundError or ValueError,
    in one line that names the file (or `name`), for anything that is not an intact picture of bounded size.
    The bound is Pillow's, `PIL.Image.MAX_IMAGE_PIXELS`: 89 million pixels unless the caller changes it.
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
    text = os.fsdecode(source)
    with _file(text) as file, _open(file, repr(text)) as picture:
        return _decode(picture, repr(text))


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """The width and height of the picture that `open_image` returns for a file, from its header alone.

    Raises the errors of `open_image` that the header shows.
    """
    text = os.fsdecode(path)
    with _file(text) as file, _open(file, repr(text)) as picture:
        width, height = picture.size
        if isinstance(picture, TiffImagePlugin.TiffImageFile):  # its size may already be rotated
            tags = picture.tag_v2
            width, height = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
        _check_size((width, height), repr(text))
        return (height, width) if _orientation(picture) in (5, 6, 7, 8) else (width, height)


def _file(text: str) -> IO[bytes]:
    """Opens a regular file that is not empty; a FIFO or device is refused without waiting for it."""
    shown = brief(text, 200)
    if re.match(r'[a-z][a-z0-9+.-]+://|data:', text, re.IGNORECASE):
        raise ValueError(f'{brief(text)} is a URL: download the picture and give the path of the file')
    if not text or '\0' in text or not os.path.exists(text):
        raise FileNotFoundError(f'no picture at {shown}: check the path')
    if not stat.S_ISREG(os.stat(text).st_mode):
        raise ValueError(f'{shown} is not a file: expected a picture such as photo.jpg')
    # Without O_NONBLOCK, opening would block if a FIFO has replaced the file meanwhile.
    file = Bounded(io.FileIO(os.open(text, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)))
    size = file.size
    if 0 < size <= LARGEST_FILE:
        return file
    file.close()
    if size:
        limit = LARGEST_FILE >> 20
        raise ValueError(f'{shown} has {size >> 20} MiB, expected at most {limit}: make it smaller first')
    raise ValueError(f'{shown} is empty: expected a picture file')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses Pillow's warnings about damaged metadata, which does not affect pixels."""
    with _warning, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        warnings.simplefilter('error', Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppresses what libtiff, a C library, prints on stderr."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nothing)
        os.close(kept)


def _open(file: IO[bytes], name: str) -> Image.Image:
    """Reads the header only, so that a decompression bomb is refused before it is decompressed."""
    name = printable(name, 200)
    try:
        Image.init()
        known = [format for format in FORMATS if format in Image.OPEN]
        with _quiet():
            picture = Image.open(without_metadata(file), formats=known)
    except UnidentifiedImageError:
        raise ValueError(f'{name} is not a picture in a known format ({", ".join(FORMATS)})') from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise ValueError(f'{name} has more than {limit} million pixels: make it smaller first') from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged header can cause almost any exception
        raise ValueError(f'{name} is damaged ({_reason(error)}): get a whole copy of it') from error
    if picture.format == 'JPEG2000' and math.prod(picture.size) * len(picture.getbands()) > MOST_SAMPLES:
        width, height = picture.size
        raise ValueError(
            f'{name} is too large for JPEG 2000, {width}x{height} pixels of {picture.mode}: save it as PNG'
        )
    return picture


def _reason(error: Exception) -> str:
    """The message of an exception, shortened, or its type if it has none."""
    return printable(str(error), 200) or one_line(error)


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f'{name} is {width}x{height}: it has no pixels')
    if max(width, height) > LONGEST or width * height > (Image.MAX_IMAGE_PIXELS or float('inf')):
        raise ValueError(f'{name} is too large, {width}x{height} pixels: make it smaller first')


def _orientation(picture: Image.Image) -> object:
    """The orientation in EXIF or XMP data, which may be any value; 1 if that is damaged."""
    with contextlib.suppress(Exception), _quiet():
        # PNG's own method would decode the picture; `without_metadata` has moved EXIF to the front.
        return Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    return 1


def _decode(picture: Image.Image, name: str) -> Image.Image:
    """An opened picture of any mode -> RGB, without metadata except the marks drawn on it."""
    name = printable(name, 200)
    _check_size(picture.size, name)
    marks = drawn_marks(picture)
    upright = isinstance(picture, TiffImagePlugin.TiffImageFile)  # Pillow does so when it loads TIFF
    try:
        if upright:
            with _quiet(), _silent():
                picture.load()
        else:
            picture.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(
            f'{name} is damaged or cut short ({_reason(error)}): get a whole copy of it'
        ) from error
    orientation = 1 if upright else _orientation(picture)
    try:
        rgb = _rgb(picture)
    except MemoryError:
        raise
    except Exception as error:  # ValueError, and AssertionError of a picture that lacks its palette
        raise ValueError(
            f'{name} cannot become RGB ({_reason(error)}): save it with 8 bits a colour'
        ) from error
    if orientation in tuple(TURNS):
        rgb = rgb.transpose(TURNS[orientation])
    rgb.info = {MARKS: marks}
    return rgb


def _rgb(picture: Image.Image) -> Image.Image:
    """Pixels of any mode -> RGB; ValueError if their range is unknown."""
    if picture.mode == 'F':
        raise ValueError('its pixels are floating-point numbers')
    deep = picture.mode.startswith('I')  # 16-bit grey, which Pillow's own conversion would clip to white
    if not deep and not picture.has_transparency_data:
        return picture.convert('RGB')
    rgb = Image.new('RGB', picture.size)
    rows = max(STRIP // picture.width, 1)
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        rgb.paste(_grey(strip) if deep else _over_white(strip), (0, top))
    return rgb


def _grey(picture: Image.Image) -> Image.Image:
    """16-bit grey -> RGB."""
    levels = np.asarray(picture)
    if levels.min() < 0 or levels.max() > 65_535:
        raise ValueError('its grey levels need more than 16 bits')
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert('RGB')


def _over_white(picture: Image.Image) -> Image.Image:
    """A picture with transparency, on white."""
    white = Image.new('RGBA', picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture.convert('RGBA')).convert('RGB')
