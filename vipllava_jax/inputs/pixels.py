"""Preprocesses RGB pictures for the vision tower."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from vipllava_jax.inputs.drawn_marks import drawn_marks
from vipllava_jax.messages import CheckpointError, brief

Fit = Literal['crop', 'pad', 'squash']
FITS: tuple[Fit, ...] = get_args(Fit)
MAX_INPUT_SIDE = 4096  # pixels of the tower's input; published models have up to 1024
MAX_FACTOR = 1e6  # the largest mean, deviation or factor
FLAGS = ('do_resize', 'do_center_crop', 'do_rescale', 'do_normalize', 'do_pad')
MAX_INTERMEDIATE = 1 << 24  # pixels; intermediate pictures are kept below about this size
MAX_ROW_BY_ROW = 16 * MAX_INTERMEDIATE  # pixels of a padded picture: resizing more by rows takes seconds


@dataclass(frozen=True)
class ImageSettings:
    """How a checkpoint's pictures are preprocessed, from its preprocessor_config.json."""

    side: int = 336  # pixels per side of the vision tower's input
    edge: int = 336  # what a picture's shorter edge becomes, before the centre is cut out
    fit: Fit = 'crop'
    resample: int = Image.Resampling.BICUBIC
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def from_fields(
        cls, fields: Mapping[str, Any], name: str = 'preprocessor_config.json'
    ) -> 'ImageSettings':
        """The fields of a CLIP or LLaVA image processor -> ImageSettings; ValueError names an invalid one."""
        values = {**DEFAULTS, **{key: value for key, value in fields.items() if value is not None}}
        edge = _read_side(values, 'size', name)
        side = _read_side(values, 'crop_size', name) if values['do_center_crop'] else edge
        squash = isinstance(values['size'], dict) and 'height' in values['size']
        mean, std = values['image_mean'], values['image_std']
        wrong = {
            **{key: not isinstance(values[key], bool) for key in values if key in FLAGS},
            'rescale_factor': not _is_bounded_number(values['rescale_factor'])
            or values['rescale_factor'] <= 0,
            'image_mean': not _is_color(mean),
            'image_std': not _is_color(std) or min(std) <= 0,
        }
        _refuse_invalid(values, wrong, name)
        pad = values['do_pad']
        wrong = {
            'do_resize': not values['do_resize'],
            'do_center_crop': not (values['do_center_crop'] or squash or pad),
            'crop_size': side > edge,
            'resample': not _is_integer(values['resample']) or values['resample'] not in [*Image.Resampling],
        }
        _refuse_invalid(values, wrong, name)
        return cls(
            side=side,
            edge=edge,
            fit='pad' if pad else 'squash' if squash else 'crop',
            resample=values['resample'],
            scale=values['rescale_factor'] if values['do_rescale'] else 1,
            mean=tuple(mean) if values['do_normalize'] else (0, 0, 0),
            std=tuple(std) if values['do_normalize'] else (1, 1, 1),
        )

    def normalize(self, pixels: Any) -> Any:
        """Pixels ...3 from 0 to 255, of NumPy or JAX -> float32 as the vision tower takes them."""
        shape = pixels.shape
        # Over whole rows of pixels: NumPy takes six times as long over the last axis of 3.
        rows = pixels.reshape(*shape[:-2], math.prod(shape[-2:])) if len(shape) > 2 else pixels
        count = rows.shape[-1] // 3
        mean, std = (np.tile(np.asarray(x, np.float32), count) for x in (self.mean, self.std))
        return ((rows.astype(np.float32) * np.float32(self.scale) - mean) / std).reshape(shape)

    @property
    def normalized(self) -> np.ndarray:
        """What `normalize` makes of each number from 0 to 255 in each channel: 256 x 3 float32."""
        return self.normalize(np.repeat(np.arange(256)[:, None], 3, axis=1))

    def denormalize(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels ...3 float32 as `normalize` returns them -> uint8 from 0 to 255."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return np.clip(np.rint((pixels * std + mean) / np.float32(self.scale)), 0, 255).astype(np.uint8)

    def to_fields(self) -> dict[str, Any]:
        """The fields that `from_fields` takes, complete enough for transformers."""
        square = {'height': self.edge, 'width': self.edge}
        return {
            'image_processor_type': 'LlavaImageProcessor' if self.fit == 'pad' else 'CLIPImageProcessor',
            'size': square if self.fit == 'squash' else {'shortest_edge': self.edge},
            'crop_size': {'height': self.side, 'width': self.side},
            'do_pad': self.fit == 'pad',
            'resample': int(self.resample),
            'rescale_factor': self.scale,
            'image_mean': list(self.mean),
            'image_std': list(self.std),
            **dict.fromkeys(
                ('do_resize', 'do_center_crop', 'do_convert_rgb', 'do_rescale', 'do_normalize'), True
            ),
        }


DEFAULTS = {
    'resample': ImageSettings.resample,
    'rescale_factor': ImageSettings.scale,
    'image_mean': ImageSettings.mean,
    'image_std': ImageSettings.std,
    **dict.fromkeys(('do_resize', 'do_center_crop', 'do_rescale', 'do_normalize'), True),
    'do_pad': False,
}


def _refuse_invalid(values: Mapping[str, Any], wrong: Mapping[str, bool], name: str) -> None:
    for key in filter(wrong.get, wrong):
        raise CheckpointError(
            f"{name}: {key} {brief(values[key])} is not valid: compare it with the original checkpoint's"
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bounded_number(value: Any) -> bool:
    """Whether a value is a number of a size that colour levels may be multiplied or divided by."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_FACTOR


def _is_color(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_bounded_number, value))


def _read_side(fields: Mapping[str, Any], key: str, name: str) -> int:
    """`size` and `crop_size` have been a number, {shortest_edge} and {height, width} over the years."""
    value = fields.get(key)
    lengths: list[Any] = list(value.values()) if isinstance(value, dict) else [value]
    if not 1 <= len(lengths) <= 4 or any(
        not _is_integer(length) or not 1 <= length <= MAX_INPUT_SIDE or length != lengths[0]
        for length in lengths
    ):
        raise CheckpointError(
            f'{name}: expected {key} to be the sides of one square in pixels, found {brief(value)} '
            f'(1 to {MAX_INPUT_SIDE} are allowed)'
        )
    return int(lengths[0])


def check_fit(fit: str | None) -> None:
    """Raises ValueError for an unknown fit."""
    if fit is not None and fit not in FITS:
        raise ValueError(f'unknown fit {fit!r}: choose {", ".join(FITS)}')


def pixels(image: Image.Image, settings: ImageSettings, fit: Fit | None = None) -> np.ndarray:
    """An RGB picture -> hw3 float32, normalised; `fit` as of `levels`."""
    return settings.normalize(uint8_pixels(image, settings, fit))


def uint8_pixels(image: Image.Image, settings: ImageSettings, fit: Fit | None = None) -> np.ndarray:
    """An RGB picture -> hw3 uint8; if `fit` is None, the checkpoint's processor files decide.

    'crop' resizes the shorter edge and keeps the centre; 'pad' first pads to a square with the mean colour,
    as in the authors' training; 'squash' changes the proportions.
    """
    check_fit(fit)
    fit = fit or settings.fit
    edge, side = settings.edge, settings.side
    if fit == 'crop':
        image = _cropped(image, settings)
    else:
        image = _padded(image, settings) if fit == 'pad' else image.resize((edge, edge), settings.resample)
        start = (edge - side) // 2
        image = image.crop((start, start, start + side, start + side))
    return np.asarray(image)


def _crop_window(size: tuple[int, int], settings: ImageSettings) -> tuple[int, int, int, int]:
    """A picture's width and height after resizing, and the left and top of its central square."""
    width, height = size
    short = min(size)
    # Rounded down, as in transformers.
    width, height = width * settings.edge // short, height * settings.edge // short
    return width, height, (width - settings.side) // 2, (height - settings.side) // 2


def _cropped(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """The central square of the resized picture."""
    side, (width, height, left, top) = settings.side, _crop_window(image.size, settings)
    if width * height <= MAX_INTERMEDIATE:
        return image.resize((width, height), settings.resample).crop((left, top, left + side, top + side))
    # 1x1000 pixels would become 336x336000, so only the centre is computed. Width first, as in Pillow: both
    # passes round, so the order makes a difference.
    image = image.resize((width, image.height), settings.resample).crop((left, 0, left + side, image.height))
    first, last = (min(row * image.height / height, image.height) for row in (top, top + side))
    return image.resize((side, side), settings.resample, box=(0, first, side, last))


def _padded(image: Image.Image, settings: ImageSettings) -> Image.Image:
    """The picture, padded to a square with the mean colour and resized; in strips, to save memory."""
    edge, longest = settings.edge, max(image.size)
    left, top = ((longest - length) // 2 for length in image.size)
    colour = tuple(int(mean * 255) for mean in settings.mean)
    if image.height > image.width and longest**2 > MAX_ROW_BY_ROW:
        # Height first, because only the width is padded; the order only affects rounding.
        flat = Image.new('RGB', (longest, edge), colour)
        flat.paste(image.resize((image.width, edge), settings.resample), (left, 0))
        return flat.resize((edge, edge), settings.resample)
    narrow = Image.new('RGB', (edge, longest), colour)
    rows = max(MAX_INTERMEDIATE // longest, 1)
    for y in range(0, image.height, rows):
        part = image.crop((0, y, image.width, min(y + rows, image.height)))
        strip = Image.new('RGB', (longest, part.height), colour)
        strip.paste(part, (left, 0))
        narrow.paste(strip.resize((edge, part.height), settings.resample), (0, top + y))
    return narrow.resize((edge, edge), settings.resample)


def marks_cut_off(image: Image.Image, settings: ImageSettings, fit: Fit | None = None) -> list[str]:
    """The marks drawn on the picture that cropping would cut off by more than half a pixel, as text."""
    if (fit or settings.fit) != 'crop':
        return []
    width, height, left, top = _crop_window(image.size, settings)
    x, y = image.width / width, image.height / height
    kept = (left * x, top * y, (left + settings.side) * x, (top + settings.side) * y)
    return [
        mark
        for mark, box in drawn_marks(image).extents
        if min(box[0] - kept[0], box[1] - kept[1], kept[2] - box[2], kept[3] - box[3]) < -0.5
    ]
