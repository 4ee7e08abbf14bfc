"""The record, on a picture, of the marks that were drawn on it."""

from dataclasses import dataclass

from PIL import Image

Bounds = tuple[int, int, int, int]  # left, top, right, bottom, in pixels; right and bottom are outside
KEY = 'vipllava marks'  # the key in a picture's `info`


@dataclass(frozen=True)
class DrawnMarks:
    """The marks drawn on a picture of this width and height: their text and the bounds of their pixels."""

    size: tuple[int, int]
    extents: tuple[tuple[str, Bounds], ...] = ()


def drawn_marks(image: Image.Image) -> DrawnMarks:
    """The marks on a picture; none if it has been resized or cropped since."""
    found = image.info.get(KEY)
    return found if isinstance(found, DrawnMarks) and found.size == image.size else DrawnMarks(image.size)


def record_marks(image: Image.Image, extents: tuple[tuple[str, Bounds], ...]) -> Image.Image:
    """The same picture, with this record in place of all its metadata."""
    image.info = {KEY: DrawnMarks(image.size, extents)}
    return image
