"""Visual prompts: what a mark is, how it is written in a line of text, and marks on a picture."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from vipllava_jax.inputs.images import MARKS, Drawn, Source, drawn, open_image
from vipllava_jax.inputs.strokes import STROKES, Hand, Pen, Point, Region

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
OPTIONS = {'alpha': int, 'width': float, 'units': str}  # that may follow the colour in a line of text
SYNTAX = 'write SHAPE:X1,Y1,X2,Y2[:COLOR][:alpha=N][:width=N], such as rectangle:40,60,180,220:red'
POINTED = ('point', 'arrow')  # the shapes for which a point is enough
LINELESS = ('point', 'mask')


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
        shape, alpha, width = self.shape, self.alpha, self.width
        if shape not in PREPOSITIONS:
            raise ValueError(f'unknown shape {shape!r}: choose {", ".join(PREPOSITIONS)}')
        if self.box is None and self.polygon is None and not (self.point is not None and shape in POINTED):
            point = ', or a point x, y' if shape in POINTED else ''
            raise ValueError(
                f'{shape} needs a box x1, y1, x2, y2 or a polygon x1, y1, x2, y2, x3, y3, ...{point}'
            )
        if alpha is not None and not (isinstance(alpha, int) and 1 <= alpha <= 255):
            raise ValueError(
                f'{shape} has alpha {alpha!r}: give a whole number from 1 to 255, which is opaque'
            )
        if width is not None and not (shape not in LINELESS and 0 < width < math.inf):
            advice = 'leave it out, there is no line' if shape in LINELESS else 'give a positive number'
            raise ValueError(f'{shape} has width {width!r}: {advice}')
        if self.units not in ('pixel', 'relative', None):
            raise ValueError(f"{shape} has units {self.units!r}: choose 'pixel', 'relative' or None")
        settled = {
            'box': None if self.box is None else _box(self.box),
            'point': None if self.point is None else _numbers(self.point, 2, 'a point has x and y'),
            'polygon': None if self.polygon is None else _polygons(self.polygon),
            'color': _color(self.color),
        }
        for field, value in settled.items():
            object.__setattr__(self, field, value)

    @property
    def phrase(self) -> str:
        """How the mark is spoken of, 'within the red rectangle'; an unnamed colour is left out."""
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
        """Where the mark is on a picture of width x height pixels; ValueError if outside or barely there."""
        box = [] if self.box is None else [tuple(self.box[:2]), tuple(self.box[2:])]
        spot = [] if self.point is None else [tuple(self.point)]
        parts = [np.array(part) for part in (box, spot, *(self.polygon or ())) if part]
        corners = np.concatenate(parts)
        relative = self.units == 'relative' or (self.units is None and corners.max() <= 1)
        unit, read = (size, 'fractions') if relative else ((1, 1), 'pixels')
        if (corners < 0).any() or (corners * unit > size).any():
            raise ValueError(
                f'mark {self} lies outside the picture, which is {size[0]}x{size[1]} pixels: move it inside '
                f'(its coordinates were read as {read})'
            )
        if any(len(part) > 1 and (np.ptp(part, axis=0) * unit).min() < 1 for part in parts):
            raise ValueError(
                f'mark {self} is less than a pixel wide or high: enlarge it (coordinates read as {read})'
            )

        def place(pairs: Iterable[Any]) -> tuple[Point, ...]:
            # The right and lower edge count as inside, and a line there must stay visible.
            return tuple((min(x * unit[0], size[0] - 1.0), min(y * unit[1], size[1] - 1.0)) for x, y in pairs)

        polygons = tuple(place(polygon) for polygon in self.polygon or ())
        around = place(box) or tuple(pair for polygon in polygons for pair in polygon) or place(spot)
        (x1, y1), (x2, y2) = np.min(around, axis=0).tolist(), np.max(around, axis=0).tolist()
        return Region(size, (x1, y1, x2, y2), polygons, place(spot)[0] if spot else None)


def _numbers(values: Any, count: int | None, rule: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(f'expected numbers, found {values!r}: {rule}') from None
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f'coordinates must be finite, found {numbers}')
    if count is not None and len(numbers) != count:
        raise ValueError(f'found {len(numbers)} numbers, {numbers}: {rule}')
    return numbers


def _box(values: Any) -> tuple[float, ...]:
    box = _numbers(values, 4, 'a box has x1, y1, x2, y2')
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f'box {box} is empty: give the upper left and then the lower right corner')
    return box


def _polygons(values: Any) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """One polygon or several, flat or in pairs -> several, in pairs."""
    several = _nested(values) and not all(not _nested(value) and np.size(value) == 2 for value in values)
    return tuple(_polygon(polygon) for polygon in (values if several else [values]))


def _polygon(values: Any) -> tuple[tuple[float, ...], ...]:
    if _nested(values):
        pairs = tuple(_numbers(value, 2, 'a corner of a polygon has x and y') for value in values)
    else:
        numbers = _numbers(values, None, 'a polygon has x1, y1, x2, y2, x3, y3, ...')
        if len(numbers) % 2:
            raise ValueError(f'found {len(numbers)} numbers, {numbers}: expected x1, y1, x2, y2, x3, y3, ...')
        pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    if len(pairs) < 3 or np.linalg.matrix_rank(np.subtract(pairs, pairs[0])) < 2:
        raise ValueError(f'polygon {pairs} is empty: give at least three corners that are not on one line')
    return pairs


def _nested(values: Any) -> bool:
    sequences = (list, tuple, np.ndarray)
    return isinstance(values, sequences) and any(isinstance(value, sequences) for value in values)


def _color(color: Any) -> str | tuple[int, ...]:
    """One of the names, '#rrggbb' or three numbers -> the name, or the numbers."""
    if isinstance(color, str) and color in COLORS:
        return color
    if isinstance(color, str) and re.fullmatch('#[0-9a-fA-F]{6}', color):
        return tuple(bytes.fromhex(color[1:]))
    if isinstance(color, (list, tuple)) and len(color) == 3 and all(0 <= part <= 255 for part in color):
        return tuple(int(part) for part in color)
    raise ValueError(f"unknown color {color!r}: choose {', '.join(COLORS)}, or '#rrggbb'")


def parse(text: str) -> tuple[int, Mark]:
    """'2/rectangle:40,60,180,220:red:alpha=200' -> (1, the mark), where 1 is the index of the second image.

    Two numbers are a point, four a box, six or more a polygon; several places are joined by '+'.
    ValueError, in one line that holds the text, for anything else.
    """
    number, slash, rest = text.partition('/')
    try:
        if slash and not (number.isascii() and number.isdigit() and int(number) > 0):
            raise ValueError(f'the image before "/" is a number from 1, found {number!r}')
        shape, *fields = (rest if slash else text).split(':')
        if not fields:
            raise ValueError(SYNTAX)
        shape = ' '.join(shape.replace('-', ' ').replace('_', ' ').split())
        return int(number) - 1 if slash else 0, Mark(shape, **_places(fields[0]), **_trailing(fields[1:]))
    except ValueError as error:
        raise ValueError(f'mark {text!r}: {error}') from None


def _places(text: str) -> dict[str, Any]:
    """'40,60,180,220+90,90' -> the box and the point."""
    places: dict[str, Any] = {}
    for part in text.split('+'):
        numbers = _numbers(part.split(','), None, SYNTAX)
        if len(numbers) % 2:
            raise ValueError(
                f'{part!r} has {len(numbers)} numbers: a point has two, a box four, a polygon six or more'
            )
        if len(numbers) in (2, 4):
            name = 'point' if len(numbers) == 2 else 'box'
            if name in places:
                raise ValueError(f'found two of {name}: give each mark a --mark of its own')
            places[name] = numbers
        else:
            places.setdefault('polygon', []).append(numbers)
    return places


def _trailing(fields: list[str]) -> dict[str, Any]:
    """['red', 'alpha=200'] -> the arguments of Mark."""
    found: dict[str, Any] = {}
    for field in fields:
        key, equals, value = field.partition('=')
        if not equals:
            key, value = 'color', field
        if key in found or key not in ('color', *OPTIONS):
            raise ValueError(f'found {field!r} where only a color, {", ".join(OPTIONS)} may stand, each once')
        try:
            found[key] = OPTIONS.get(key, str)(value)
        except ValueError:
            raise ValueError(f'{key} must be a number, found {value!r}') from None
    return found


def draw(image: Source, marks: Mark | Iterable[Mark], seed: int | None = None) -> Image.Image:
    """A picture and marks -> a new RGB picture of the same size, the marks drawn on it one after another.

    Without a seed sizes are fixed and alpha is 128, as in evaluation; with one they vary as in training, the
    same way for the same seed. ValueError names a mark that lies outside the picture.
    """
    picture = open_image(image)
    hand = Hand(None if seed is None else np.random.default_rng(seed))
    scale = max(picture.size) / 336
    extents = list(drawn(picture).extents)
    for mark in [marks] if isinstance(marks, Mark) else list(marks):
        if not isinstance(mark, Mark):
            raise TypeError(f'expected a Mark, found {mark!r}: Mark(...) makes one, and parse(...) from text')
        low, high = (48, 128) if mark.shape == 'mask' else (96, 255)
        alpha = hand.whole(low, high, 128) if mark.alpha is None else mark.alpha
        rgb = COLORS[mark.color] if isinstance(mark.color, str) else mark.color
        canvas = Image.new('RGBA', picture.size)
        pen = Pen(ImageDraw.Draw(canvas), (*rgb, alpha), scale, mark.width)
        STROKES[mark.shape](pen, mark.region(picture.size), hand)
        picture = Image.alpha_composite(picture.convert('RGBA'), canvas).convert('RGB')
        if touched := canvas.getbbox():
            extents.append((str(mark), touched))
    picture.info = {MARKS: Drawn(picture.size, tuple(extents))}
    return picture
