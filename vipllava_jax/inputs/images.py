"""Pictures: any file a user may hold to RGB, and RGB to the numbers the vision tower was trained on."""

import io
import os
import re
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Source = str | os.PathLike[str] | bytes | Image.Image
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
Fit = Literal['crop', 'pad', 'squash']
FITS: tuple[Fit, ...] = get_args(Fit)

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'ICO')
LONGEST = 65_535  # pixels of a side: what a JPEG can hold
GIANT = 1 << 24  # pixels, which no picture made on the way shall have
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
        formats = [name for name in FORMATS if name in Image.OPEN]
        with _opening, warnings.catch_warnings():
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            return Image.open(file, formats=formats)
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
    if picture.mode == 'F':
        raise ValueError(
            f'{name} has floating-point pixels, whose range is unknown: save it with 8 or 16 bits'
        )
    try:
        rgb = _rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(f'{name} is damaged or cut short ({error}): get a whole copy of it') from error
    rgb.info = {MARKS: drawn(picture)}
    return rgb


def _rgb(picture: Image.Image) -> Image.Image:
    """Upright pixels of any mode -> RGB."""
    if picture.mode.startswith('I'):  # 16-bit grey, which Pillow's own conversion would clip to white
        levels = np.asarray(picture).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65_535:
            raise ValueError('its grey levels need more than 16 bits')
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert('RGB')
    if not picture.has_transparency_data:
        return picture.convert('RGB')
    white = Image.new('RGBA', picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture.convert('RGBA')).convert('RGB')


@dataclass(frozen=True)
class Settings:
    """How a checkpoint wants its pictures: the fields of its preprocessor_config.json that matter."""

    side: int = 336  # of the square that the vision tower sees
    edge: int = 336  # what a picture's shorter edge becomes, before the centre is cut out
    fit: Fit = 'crop'
    resample: int = Image.Resampling.BICUBIC
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def read(cls, fields: Mapping[str, Any], name: str = 'preprocessor_config.json') -> 'Settings':
        """The fields of a CLIP or LLaVA image processor -> Settings; ValueError names what cannot be."""
        edge, squash = _length(fields, 'size', name), 'height' in str(fields['size'])
        crop, pad = fields.get('do_center_crop', True), bool(fields.get('do_pad'))
        side = _length(fields, 'crop_size', name) if crop else edge
        if not fields.get('do_resize', True) or side > edge or not (crop or squash or pad):
            raise ValueError(
                f'{name}: expected do_resize, and do_center_crop with a crop_size within size; found '
                + ', '.join(
                    f'{key} {fields.get(key)}' for key in ('do_resize', 'size', 'do_center_crop', 'crop_size')
                )
            )
        normalise = fields.get('do_normalize', True)
        return cls(
            side=side,
            edge=edge,
            fit='pad' if pad else 'squash' if squash else 'crop',
            resample=fields.get('resample', cls.resample),
            scale=fields.get('rescale_factor', cls.scale) if fields.get('do_rescale', True) else 1.0,
            mean=tuple(fields.get('image_mean', cls.mean)) if normalise else (0.0, 0.0, 0.0),
            std=tuple(fields.get('image_std', cls.std)) if normalise else (1.0, 1.0, 1.0),
        )


def _length(fields: Mapping[str, Any], key: str, name: str) -> int:
    """`size` and `crop_size` have been a number, {shortest_edge} and {height, width} over the years."""
    value = fields.get(key)
    lengths = list(value.values()) if isinstance(value, dict) else [value]
    if len(set(lengths)) != 1 or not isinstance(lengths[0], int) or lengths[0] < 1:
        raise ValueError(f'{name}: expected {key} to be the sides of one square in pixels, found {value!r}')
    return lengths[0]


def pixels(image: Image.Image, settings: Settings, fit: Fit | None = None) -> np.ndarray:
    """An RGB picture -> hw3 float32, normalised; `fit` None is as the checkpoint's processor files say.

    'crop' resizes the shorter edge and keeps the centre; 'pad' first pastes on a square of the mean colour,
    as the authors trained; 'squash' gives up the proportions.
    """
    fit = check_fit(fit) or settings.fit
    edge, side = settings.edge, settings.side
    if fit == 'crop':
        image = _cropped(image, settings)
    else:
        image = _padded(image, settings) if fit == 'pad' else image.resize((edge, edge), settings.resample)
        start = (edge - side) // 2
        image = image.crop((start, start, start + side, start + side))
    numbers = np.asarray(image).astype(np.float32) * np.float32(settings.scale)
    return (numbers - np.asarray(settings.mean, np.float32)) / np.asarray(settings.std, np.float32)


def check_fit(fit: str | None) -> Fit | None:
    """A `fit` as a user gave it -> the same; ValueError lists the valid ones."""
    if fit is not None and fit not in FITS:
        raise ValueError(f'unknown fit {fit!r}: choose {", ".join(FITS)}')
    return fit


def _resized(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """The longer edge is cut down to a whole number, as the processors of transformers do."""
    width, height = size
    return (edge, edge * height // width) if width <= height else (edge * width // height, edge)


def _cropped(image: Image.Image, settings: Settings) -> Image.Image:
    """The centre of the resized picture."""
    side, (width, height) = settings.side, _resized(image.size, settings.edge)
    left, top = (width - side) // 2, (height - side) // 2
    if width * height <= GIANT:
        return image.resize((width, height), settings.resample).crop((left, top, left + side, top + side))
    # 1x1000 pixels would become 336x336000, so only the centre is made. Widths first, as Pillow does: both
    # passes round, so that their order shows.
    image = image.resize((width, image.height), settings.resample).crop((left, 0, left + side, image.height))
    first, last = (min(row * image.height / height, image.height) for row in (top, top + side))
    return image.resize((side, side), settings.resample, box=(0, first, side, last))


def _padded(image: Image.Image, settings: Settings) -> Image.Image:
    """The picture in the middle of a square of the mean colour, resized in strips, as that may be giant."""
    edge, longest = settings.edge, max(image.size)
    left, top = ((longest - length) // 2 for length in image.size)
    colour = tuple(int(mean * 255) for mean in settings.mean)
    narrow = Image.new('RGB', (edge, longest), colour)
    rows = max(GIANT // longest, 1)
    for y in range(0, image.height, rows):
        part = image.crop((0, y, image.width, min(y + rows, image.height)))
        strip = Image.new('RGB', (longest, part.height), colour)
        strip.paste(part, (left, 0))
        narrow.paste(strip.resize((edge, part.height), settings.resample), (0, top + y))
    return narrow.resize((edge, edge), settings.resample)


def cut_off(image: Image.Image, settings: Settings, fit: Fit | None = None) -> list[str]:
    """The marks drawn on the picture of which fitting would lose some pixels, as their specifications."""
    if (fit or settings.fit) != 'crop':
        return []
    width, height = _resized(image.size, settings.edge)
    x, y = (
        (width - settings.side) // 2 / width * image.width,
        (height - settings.side) // 2 / height * image.height,
    )
    right, bottom = x + settings.side * image.width / width, y + settings.side * image.height / height
    return [
        name
        for name, box in drawn(image).extents
        if box[0] < x - 0.5 or box[1] < y - 0.5 or box[2] > right + 0.5 or box[3] > bottom + 0.5
    ]
