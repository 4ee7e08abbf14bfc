"""Converts arrays of NumPy, JAX and other libraries to pictures."""

from typing import Any, Protocol, TypeGuard

import numpy as np
from PIL import Image


class ImageArray(Protocol):
    """An array hw, hw1, hw3 or hw4 of uint8 that NumPy can read: its own, or one of JAX or PyTorch."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


def is_array(value: Any) -> TypeGuard[ImageArray]:
    """Whether a value is an array of NumPy or of another library."""
    return hasattr(value, 'shape') and hasattr(value, 'dtype') and hasattr(value, '__array__')


def check_array(array: ImageArray, name: str) -> tuple[int, int]:
    """The width and height of the picture in an array; ValueError for another shape or dtype."""
    shape, dtype = tuple(array.shape), str(array.dtype).removeprefix('torch.')
    found = f'{name} is an array of {dtype} with the shape {shape}'
    if len(shape) == 4:
        raise ValueError(f'{found}: pass several images as a list, such as list(array)')
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        channels_first = len(shape) == 3 and shape[0] in (1, 3, 4)
        hint = ': move the channels to the end, np.moveaxis(array, 0, -1)' if channels_first else ''
        raise ValueError(f'{found}, expected height x width, or height x width x 1, 3 or 4{hint}')
    if dtype != 'uint8':
        scale = ': for values from 0 to 1, (255 * array).round().astype("uint8")' if 'float' in dtype else ''
        raise ValueError(f'{found}, expected uint8{scale}')
    return shape[1], shape[0]


def image_of_array(array: ImageArray) -> Image.Image:
    """A checked array hw, hw1 (grey), hw3 (RGB) or hw4 (RGBA) of uint8 -> a picture."""
    pixels = np.asarray(array)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
