"""Visual prompts: marks, and drawing them on pictures."""

import contextlib
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from vipllava_jax.inputs.canvas import Canvas
from vipllava_jax.inputs.coordinates import as_sequence, is_number, read_box, read_numbers, read_polygons
from vipllava_jax.inputs.drawn_marks import drawn_marks, record_marks
from vipllava_jax.inputs.images import ImageSource, open_image
from vipllava_jax.inputs.strokes import STROKES, Pen, Point, Region, Variation
from vipllava_jax.messages import brief, printable

PREPOSITIONS = {
    'rectangle': 'within',
    'ellipse': 'within',
    'triangle': 'with',
    'point': 'at',
    'scribble': 'with',
    'mask': 'with',
    'mask contour': 'with',
    'arrow': 'pointed to by',
}
COLORS = {
    'red': (255, 0, 0),
    'lime': (0, 255, 0),
    'blue': (0, 0, 255),
    'yellow': (255, 255, 0),
    'fuchsia': (255, 0, 255),
    'aqua': (0, 255, 255),
    'orange': (255, 165, 0),
    'purple': (128, 0, 128),
    'gold': (255, 215, 0),
}
OPTIONS = {
    'alpha': int,
    'width': float,
    'units': str,
}  # the options that may follow the colour in a mark's text
MAX_QUOTED = 160  # characters of a mark's text in a message
POINT_SHAPES = ('point', 'arrow')  # the shapes for which a point is enough
SHAPES_WITHOUT_LINES = ('point', 'mask')
UNITS = ('pixel', 'relative')
MAX_MARKS = 10_000  # the maximum per picture


@dataclass(frozen=True)
class Mark:
    """A shape around, on or pointing at something; ValueError if it could not be drawn on any picture.

    `box` is (x1, y1, x2, y2); `point` is (x, y), of an arrow its tip; `polygon` is one polygon or several,
    each flat or of (x, y) pairs. Coordinates that are all within 0 to 1 are fractions of the picture, others
    are pixels, unless `units` says which. `color` is one of nine names, '#rrggbb' or (red, green, blue);
    `alpha` goes from 1 to 255; `width`, of lines, is in pixels of a picture whose longer side is 336.
    """

    shape: str
    _: KW_ONLY
    box: Sequence[float] | None = None
    point: Sequence[float] | None = None
    polygon: Sequence[Any] | None = None
    color: str | Sequence[int] = 'red'
    alpha: int | None = None
    width: float | None = None
    units: Literal['pixel', 'relative'] | None = None

    def __post_init__(self) -> None:
        shape = self.shape
        if not isinstance(shape, str) or shape not in PREPOSITIONS:
            raise ValueError(f'unknown shape {brief(shape)}: choose {", ".join(PREPOSITIONS)}')
        if (
            self.box is None
            and self.polygon is None
            and not (self.point is not None and shape in POINT_SHAPES)
        ):
            point = ', or a point x, y' if shape in POINT_SHAPES else ''
            raise ValueError(
                f'{shape} needs a box x1, y1, x2, y2 or a polygon x1, y1, x2, y2, x3, y3, ...{point}'
            )
        if self.units is not None and not (isinstance(self.units, str) and self.units in UNITS):
            raise ValueError(
                f"{shape} has units {brief(self.units)}: choose 'pixel' or 'relative', or leave it out"
            )
        checked = {
            'alpha': None if self.alpha is None else _alpha(shape, self.alpha),
            'width': None if self.width is None else _width(shape, self.width),
            'box': None if self.box is None else read_box(self.box),
            'point': None if self.point is None else read_numbers(self.point, 2, 'a point has x and y'),
            'polygon': None if self.polygon is None else read_polygons(self.polygon),
            'color': _color(self.color),
        }
        for field, value in checked.items():
            object.__setattr__(self, field, value)

    @property
    def phrase(self) -> str:
        """The phrase for the mark in a prompt, 'within the red rectangle'; an unnamed colour is left out."""
        color = f'{self.color} ' if isinstance(self.color, str) else ''
        return f'{PREPOSITIONS[self.shape]} the {color}{self.shape}'

    def __str__(self) -> str:
        """The text that `parse` reads."""
        places = [part for part in (self.box, self.point) if part is not None]
        places += [[number for pair in polygon for number in pair] for polygon in self.polygon or ()]
        color = self.color if isinstance(self.color, str) else '#' + bytes(self.color).hex()
        options = [f'{key}={value}' for key in OPTIONS if (value := getattr(self, key)) is not None]
        where = '+'.join(','.join(repr(number).removesuffix('.0') for number in place) for place in places)
        return ':'.join([self.shape.replace(' ', '-'), where, color, *options])

    def region(self, size: tuple[int, int]) -> Region:
        """The region on a picture of width x height pixels; ValueError if it is outside or too small."""
        pairs = [] if self.box is None else [tuple(self.box[:2]), tuple(self.box[2:])]
        spot = [] if self.point is None else [tuple(self.point)]
        parts = [np.array(part) for part in (pairs, spot, *(self.polygon or ())) if part]
        corners = np.concatenate(parts)
        relative = self.units == 'relative' or (self.units is None and corners.max() <= 1)
        unit, units = (size, 'fractions') if relative else ((1, 1), 'pixels')
        if (corners < 0).any() or (corners * unit > size).any():
            raise ValueError(
                f'mark {self.quoted()} lies outside the picture, which is {size[0]}x{size[1]} pixels: '
                f'move it inside (its coordinates were read as {units})'
            )
        if any(len(part) > 1 and (np.ptp(part, axis=0) * unit).min() < 1 for part in parts):
            raise ValueError(
                f'mark {self.quoted()} is less than a pixel wide or high: enlarge it '
                f'(coordinates read as {units})'
            )

        def place(pairs: Iterable[Any]) -> tuple[Point, ...]:
            # The right and lower edge count as inside, and a line there must stay visible.
            return tuple((min(x * unit[0], size[0] - 1.0), min(y * unit[1], size[1] - 1.0)) for x, y in pairs)

        placed = tuple(place(polygon) for polygon in self.polygon or ())
        around = place(pairs) or tuple(pair for polygon in placed for pair in polygon) or place(spot)
        (x1, y1), (x2, y2) = np.min(around, axis=0).tolist(), np.max(around, axis=0).tolist()
        return Region(size, (x1, y1, x2, y2), placed, place(spot)[0] if spot else None)

    def quoted(self) -> str:
        """The mark's text, shortened for a message."""
        return printable(str(self), MAX_QUOTED)


def _alpha(shape: str, alpha: Any) -> int:
    """A whole number from 1 to 255."""
    if is_number(alpha) and 1 <= alpha <= 255 and int(alpha) == alpha and not isinstance(alpha, float):
        return int(alpha)
    raise ValueError(f'{shape} has alpha {brief(alpha)}: give a whole number from 1 to 255, which is opaque')


def _width(shape: str, width: Any) -> float:
    """A positive number, for a shape that has lines."""
    if shape in SHAPES_WITHOUT_LINES:
        raise ValueError(f'{shape} has width {brief(width)}: leave it out, there is no line')
    with contextlib.suppress(OverflowError):  # from an integer that is too large for a float
        if is_number(width) and 0 < float(width) < math.inf:
            return width if isinstance(width, (int, float)) else float(width)
    raise ValueError(f'{shape} has width {brief(width)}: give a positive number')


def _color(color: Any) -> str | tuple[int, ...]:
    """One of the names, '#rrggbb' or three whole numbers -> the name, or the numbers."""
    if isinstance(color, str):
        if color in COLORS:
            return color
        if re.fullmatch('#[0-9a-fA-F]{6}', color):
            return tuple(bytes.fromhex(color[1:]))
    else:
        parts = as_sequence(color)
        if parts is not None and len(parts) == 3 and all(map(_is_level, parts)):
            return tuple(int(part) for part in parts)
    raise ValueError(f"unknown color {brief(color)}: choose {', '.join(COLORS)}, or '#rrggbb'")


def _is_level(part: Any) -> bool:
    return is_number(part) and 0 <= part <= 255 and int(part) == part


def draw(image: ImageSource, marks: Mark | Iterable[Mark], seed: int | None = None) -> Image.Image:
    """A picture and marks -> a new RGB picture of the same size, the marks drawn on it one after another.

    Without a seed sizes are fixed and alpha is 128, as in evaluation; with one they vary as in training, the
    same way for the same seed. ValueError names a mark that lies outside the picture.
    """
    mark_list = [marks] if isinstance(marks, Mark) else list(itertools.islice(marks, MAX_MARKS + 1))
    for mark in mark_list:
        if not isinstance(mark, Mark):
            raise TypeError(
                f'expected a Mark, found {brief(mark)}: create one with Mark(...) or parse_mark(text)'
            )
    if len(mark_list) > MAX_MARKS:
        raise ValueError(f'more than {MAX_MARKS} marks on one picture: draw fewer')
    picture = open_image(image)
    vary = Variation(None if seed is None else np.random.default_rng(seed))
    scale = max(picture.size) / 336
    extents = list(drawn_marks(picture).extents)
    canvas = Canvas(picture.size)
    regions = [mark.region(picture.size) for mark in mark_list]
    for mark, region in zip(mark_list, regions, strict=True):
        low, high = (48, 128) if mark.shape == 'mask' else (96, 255)
        alpha = vary.integer(low, high, 128) if mark.alpha is None else mark.alpha
        rgb = COLORS[mark.color] if isinstance(mark.color, str) else mark.color
        pen = Pen(canvas, (*rgb, alpha), scale, mark.width)
        STROKES[mark.shape](pen, region, vary)
        if touched := canvas.composite_onto(picture):
            extents.append((mark.quoted(), touched))
    return record_marks(picture, tuple(extents))
