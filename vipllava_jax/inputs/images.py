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
from typing import IO

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from vipllava_jax.inputs.drawn_marks import drawn_marks, record_marks
from vipllava_jax.inputs.image_arrays import ImageArray, check_array, image_of_array, is_array
from vipllava_jax.inputs.limits import BoundedReader
from vipllava_jax.inputs.metadata import without_metadata
from vipllava_jax.messages import brief, one_line, printable

ImageSource = str | os.PathLike[str] | bytes | Image.Image | ImageArray

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'ICO')
MAX_SIDE = 65_535  # pixels per side: the limit of JPEG
MAX_FILE_BYTES = 1 << 30  # bytes
MAX_SAMPLES = 270_000_000  # the samples of a JPEG 2000 picture; its decoder takes 4 bytes for each
STRIP = 1 << 22  # pixels converted at a time
TO_UPRIGHT = {  # by EXIF orientation, what makes the picture upright; 1 needs nothing
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_warning_filters = threading.Lock()  # warnings.catch_warnings changes global state
logging.getLogger('PIL').addHandler(logging.NullHandler())  # otherwise its log messages go to stderr


def open_image(source: ImageSource, name: str = 'the picture', max_pixels: int | None = None) -> Image.Image:
    """A path, the bytes of a file, a PIL picture or an array hw, hw3 or hw4 of uint8 -> a new RGB picture.

    The picture is upright, with transparency on white, 16-bit grey scaled to 8 bits, and the first frame of
    an animation. Raises FileNotFoundError or ValueError, in one line that names the file (or `name`), for
    anything that is not an intact picture of bounded size: at most `PIL.Image.MAX_IMAGE_PIXELS`, 89 million
    pixels unless the caller changes it, and at most `max_pixels` if that is less.
    """
    if isinstance(source, Image.Image):
        return _decode(source, name, max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ValueError(f'{name} is empty: expected the bytes of a picture file')
        with _read_header(io.BytesIO(source), name) as picture:
            return _decode(picture, name, max_pixels)
    if is_array(source):
        _check_size(check_array(source, name), name, max_pixels)
        return _decode(image_of_array(source), name)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f'{name} is of type {type(source).__name__}: expected a path, bytes, a PIL picture or an array'
        )
    text = os.fsdecode(source)
    with _open_file(text) as file, _read_header(file, repr(text)) as picture:
        return _decode(picture, repr(text), max_pixels)


def image_size(source: str | os.PathLike[str] | bytes, name: str = 'the picture') -> tuple[int, int]:
    """The width and height of the picture that `open_image` returns for a file, from its header alone.

    The file is given by its path or its bytes. Raises the errors of `open_image` that the header shows.
    """
    if isinstance(source, bytes):
        file: IO[bytes] = io.BytesIO(source)
    else:
        name = repr(os.fsdecode(source))
        file = _open_file(os.fsdecode(source))
    with file, _read_header(file, name) as picture:
        width, height = picture.size
        if isinstance(picture, TiffImagePlugin.TiffImageFile):  # its size may already be rotated
            tags = picture.tag_v2
            width, height = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
        _check_size((width, height), name)
        return (height, width) if _orientation(picture) in (5, 6, 7, 8) else (width, height)


def _open_file(text: str) -> IO[bytes]:
    """Opens a regular file that is not empty; a FIFO or device is refused without waiting for it."""
    shown = brief(text, 200)
    if re.match(r'[a-z][a-z0-9+.-]+://|data:', text, re.IGNORECASE):
        raise ValueError(f'{brief(text)} is a URL: download the picture and give the path of the file')
    if not text or '\0' in text or not os.path.exists(text):
        raise FileNotFoundError(f'no picture at {shown}: check the path')
    if not stat.S_ISREG(os.stat(text).st_mode):
        raise ValueError(f'{shown} is not a file: expected a picture such as photo.jpg')
    # Without O_NONBLOCK, opening would block if a FIFO has replaced the file meanwhile.
    file = BoundedReader(io.FileIO(os.open(text, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)))
    size = file.size
    if 0 < size <= MAX_FILE_BYTES:
        return file
    file.close()
    if size:
        limit = MAX_FILE_BYTES >> 20
        raise ValueError(f'{shown} has {size >> 20} MiB, expected at most {limit}: make it smaller first')
    raise ValueError(f'{shown} is empty: expected a picture file')


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppresses Pillow's warnings about damaged metadata, which does not affect pixels."""
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        warnings.simplefilter('error', Image.DecompressionBombWarning)
        yield


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
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


def _read_header(file: IO[bytes], name: str) -> Image.Image:
    """Reads the header only, so that a decompression bomb is refused before it is decompressed."""
    name = printable(name, 200)
    try:
        Image.init()
        known = [format for format in FORMATS if format in Image.OPEN]
        with _without_warnings():
            picture = Image.open(without_metadata(file), formats=known)
    except UnidentifiedImageError:
        raise ValueError(f'{name} is not a picture in a known format ({", ".join(FORMATS)})') from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise ValueError(f'{name} has more than {limit} million pixels: make it smaller first') from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged header can cause almost any exception
        raise ValueError(f'{name} is damaged ({_reason(error)}): use an intact copy') from error
    if picture.format == 'JPEG2000' and math.prod(picture.size) * len(picture.getbands()) > MAX_SAMPLES:
        width, height = picture.size
        raise ValueError(
            f'{name} is too large for JPEG 2000, {width}x{height} pixels of {picture.mode}: save it as PNG'
        )
    return picture


def _reason(error: Exception) -> str:
    """The message of an exception, shortened, or its type if it has none."""
    return printable(str(error), 200) or one_line(error)


def _check_size(size: tuple[int, int], name: str, max_pixels: int | None = None) -> None:
    width, height = size
    most = min(limit for limit in (max_pixels, Image.MAX_IMAGE_PIXELS, math.inf) if limit is not None)
    if width < 1 or height < 1:
        raise ValueError(f'{name} is {width}x{height}: it has no pixels')
    if max(width, height) > MAX_SIDE or width * height > most:
        raise ValueError(f'{name} is too large, {width}x{height} pixels: make it smaller first')


def _orientation(picture: Image.Image) -> object:
    """The orientation in EXIF or XMP data, which may be any value; 1 if that is damaged."""
    with contextlib.suppress(Exception), _without_warnings():
        # PNG's own method would decode the picture; `without_metadata` has moved EXIF to the front.
        return Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    return 1


def _decode(picture: Image.Image, name: str, max_pixels: int | None = None) -> Image.Image:
    """An opened picture of any mode -> RGB, without metadata except the marks drawn on it."""
    name = printable(name, 200)
    _check_size(picture.size, name, max_pixels)
    marks = drawn_marks(picture).extents
    upright = isinstance(picture, TiffImagePlugin.TiffImageFile)  # Pillow does so when it loads TIFF
    try:
        if upright:
            with _without_warnings(), _without_stderr():
                picture.load()
        else:
            picture.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(f'{name} is damaged or cut short ({_reason(error)}): use an intact copy') from error
    orientation = 1 if upright else _orientation(picture)
    try:
        rgb = _rgb(picture)
    except MemoryError:
        raise
    except Exception as error:  # ValueError, and AssertionError of a picture that lacks its palette
        raise ValueError(
            f'{name} cannot be converted to RGB ({_reason(error)}): save it with 8 bits per channel'
        ) from error
    if orientation in tuple(TO_UPRIGHT):
        rgb = rgb.transpose(TO_UPRIGHT[orientation])
    return record_marks(rgb, marks)


def _rgb(picture: Image.Image) -> Image.Image:
    """Pixels of any mode -> RGB; ValueError if their range is unknown."""
    if picture.mode == 'F':
        raise ValueError('its pixels are floating-point numbers')
    deep_grey = picture.mode.startswith('I')  # 16-bit grey, which Pillow's own conversion would clip to white
    if not deep_grey and not picture.has_transparency_data:
        return picture.convert('RGB')
    rgb = Image.new('RGB', picture.size)
    rows = max(STRIP // picture.width, 1)
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        rgb.paste(_rgb_of_grey(strip) if deep_grey else _over_white(strip), (0, top))
    return rgb


def _rgb_of_grey(picture: Image.Image) -> Image.Image:
    """16-bit grey -> RGB."""
    levels = np.asarray(picture)
    if levels.min() < 0 or levels.max() > 65_535:
        raise ValueError('its grey levels need more than 16 bits')
    return Image.fromarray(((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert('RGB')


def _over_white(picture: Image.Image) -> Image.Image:
    """A picture with transparency, on white."""
    white = Image.new('RGBA', picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture.convert('RGBA')).convert('RGB')
