"""The canvas draws the same as Pillow, in time and memory bounded by the size of the picture."""

import itertools
import math
import resource
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tests.makers import noise
from vipllava_jax.inputs.canvas import MAX_OUTLINE_PIXELS, Canvas
from vipllava_jax.inputs.drawn_marks import drawn_marks
from vipllava_jax.inputs.marks import PREPOSITIONS, Mark, draw
from vipllava_jax.inputs.strokes import Region

INK = (250, 120, 10, 77)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
fraction = st.floats(0, 1)
inside = st.tuples(st.floats(0, 40), st.floats(0, 40))
widths = st.integers(1, 60)


class Pillow:
    """A canvas that passes the same calls to Pillow unchanged."""

    def __init__(self, size):
        self.image = Image.new('RGBA', size)
        self.pencil = ImageDraw.Draw(self.image)

    def line(self, points, colour, width, joint=None):
        self.pencil.line(points, colour, width, joint)

    def curve(self, points, colour, width):
        self.pencil.line(points.ravel().tolist(), colour, width)

    def rectangle(self, box, colour, width):
        self.pencil.rectangle(box, outline=colour, width=width)

    def ellipse(self, box, **how):
        self.pencil.ellipse(box, **how)

    def polygon(self, corners, colour):
        self.pencil.polygon(corners, fill=colour)

    def contour(self, polygons, colour, reach):
        for polygon, dx, dy in itertools.product(
            polygons, range(-reach, reach + 1), range(-reach, reach + 1)
        ):
            self.pencil.polygon([(x + dx, y + dy) for x, y in polygon], outline=colour)


def on_picture(size, points):
    """Fractions of a picture -> pixels on the picture, the last ones included."""
    return [(x * (size[0] - 1), y * (size[1] - 1)) for x, y in points]


def as_call(size, name, points, width):
    """A random call to a canvas, as a mark may make it."""
    spots, pixels = on_picture(size, points), 1 + int(width * (4 * max(size) - 1))
    (x1, y1), (x2, y2) = np.min(spots[:2], axis=0), np.max(spots[:2], axis=0)
    return {
        'line': ('line', spots, INK, pixels),
        'joined line': ('line', [*spots, spots[0]], INK, pixels, 'curve'),
        'curve': ('curve', np.array(spots), INK, pixels),
        'rectangle': ('rectangle', (x1, y1, x2, y2), INK, pixels),
        'polygon': ('polygon', spots, INK),
        'contour': ('contour', [spots, spots[::-1][:3]], INK, int(4 * width)),
    }[name]


@given(
    size=sizes,
    calls=st.lists(
        st.tuples(
            st.sampled_from(['line', 'joined line', 'curve', 'rectangle', 'polygon', 'contour']),
            st.lists(st.tuples(fraction, fraction), min_size=3, max_size=6),
            fraction,
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_drawing_equals_pillows(size, calls):
    ours, theirs = Canvas(size), Pillow(size)
    for call in calls:
        name, *arguments = as_call(size, *call)
        getattr(ours, name)(*arguments)
        getattr(theirs, name)(*arguments)
    np.testing.assert_array_equal(ours.image, theirs.image)
    picture = noise(*size)
    expected = Image.alpha_composite(picture.convert('RGBA'), theirs.image).convert('RGB')
    assert ours.composite_onto(picture) == theirs.image.getbbox()
    np.testing.assert_array_equal(picture, expected)
    assert ours.image.getbbox() is None
    assert ours.composite_onto(picture) is None


@given(size=sizes, one=inside, other=inside, width=widths, filled=st.booleans())
def test_ellipses_equal_pillows(size, one, other, width, filled):
    box = (*map(min, one, other), *map(max, one, other))
    how = {'fill': INK} if filled else {'outline': INK, 'width': width}
    ours, theirs = Canvas(size), Pillow(size)
    ours.ellipse(box, **how)
    theirs.ellipse(box, **how)
    np.testing.assert_array_equal(ours.image, theirs.image)
    assert ours.composite_onto(noise(*size)) == theirs.image.getbbox()


def test_a_long_joint_is_cleared_after_compositing():
    canvas = Canvas((30, 11))
    canvas.line([(0, 14), (0, 0), (0, 12), (0, 0.5)], INK, 14, joint='curve')
    canvas.composite_onto(noise(30, 11))
    assert canvas.image.getbbox() is None


def test_tiles_give_the_same_picture_as_a_single_pass(monkeypatch):
    mark = Mark('ellipse', box=(3, 3, 80, 50))
    at_once = draw(noise(90, 60), mark)
    monkeypatch.setattr('vipllava_jax.inputs.canvas.TILE', 7)
    tiled = draw(noise(90, 60), mark)
    np.testing.assert_array_equal(at_once, tiled)
    assert drawn_marks(at_once).extents == drawn_marks(tiled).extents


def test_a_dilated_contour_equals_a_drawn_one(monkeypatch):
    polygons = [[(30, 20), (70, 25), (50, 60)], [(40, 40), (60.5, 40.25), (60, 70)]]
    drawn_, grown = Canvas((100, 90)), Canvas((100, 90))
    drawn_.contour(polygons, INK, 9)
    monkeypatch.setattr('vipllava_jax.inputs.canvas.MAX_OUTLINE_PIXELS', 100)
    monkeypatch.setattr(Canvas, '_thinned', lambda self, corners: corners)
    grown.contour(polygons, INK, 9)
    np.testing.assert_array_equal(drawn_.image, grown.image)
    assert drawn_.composite_onto(noise(100, 90)) == grown.composite_onto(noise(100, 90))


def test_a_huge_width_fills_the_picture():
    for shape in ('rectangle', 'mask contour'):
        for width in (1e3, 1e6, 1e308):
            picture = draw(
                Image.new('RGB', (90, 60)), Mark(shape, box=(20, 10, 50, 40), width=width, alpha=255)
            )
            assert (np.asarray(picture) == (255, 0, 0)).all()
    ellipse = draw(Image.new('RGB', (90, 60)), Mark('ellipse', box=(20, 10, 50, 40), width=1e9, alpha=255))
    filled = np.asarray(ellipse)[..., 0] > 0
    assert filled[25, 35]
    assert not filled[0, 0]


@pytest.mark.parametrize('seed', [None, 1])
@pytest.mark.parametrize(
    'size', [(1, 1), (1, 2), (2, 1), (3, 3), (1, 300), (301, 1), (65_535, 1), (1, 65_535)]
)
@pytest.mark.parametrize('shape', PREPOSITIONS)
def test_every_shape_can_be_drawn_on_extreme_sizes(shape, size, seed):
    widths = (
        (None,)
        if shape in ('mask', 'point')
        else (1e308,)
        if max(size) > 999
        else (None, 5e-324, 1, 1e6, 1e308)
    )
    for width, alpha, units in itertools.product(widths, (1, 255), ('pixel', 'relative')):
        corners = (0, 0, *(size if units == 'pixel' else (1, 1)))
        mark = Mark(shape, box=corners, width=width, alpha=alpha, units=units)
        picture = draw(Image.new('RGB', size), mark, seed)
        assert picture.size == size


def round_outline(n: int, w: int, h: int) -> list[tuple[float, float]]:
    return [
        (w / 2 * (1 + math.cos(2 * math.pi * i / n)), h / 2 * (1 + math.sin(2 * math.pi * i / n)))
        for i in range(n)
    ]


@pytest.mark.parametrize('shape', PREPOSITIONS)
@pytest.mark.parametrize('outline', ['round', 'zigzag'])
def test_many_corners_are_drawn_quickly(shape, outline):
    size, count = (1000, 1000), 50_000
    corners = (
        round_outline(count, *size)
        if outline == 'round'
        else [(i * 7 % 1000, i * 499 % 1000) for i in range(count)]
    )
    mark = Mark(shape, polygon=corners)
    begin = time.process_time()
    draw(Image.new('RGB', size), mark, seed=1)
    assert time.process_time() - begin < 10


def test_an_outline_is_thinned_only_if_it_crosses_the_picture_often():
    canvas = Canvas((1000, 1000))
    honest = round_outline(50_000, 1000, 1000)
    assert canvas._thinned(honest) is honest
    tangle = [(i * 7 % 1000, i * 499 % 1000) for i in range(100_000)]
    kept = canvas._thinned(tangle)
    assert len(kept) < len(tangle) / 2
    assert len(kept) * 1000 <= 2 * MAX_OUTLINE_PIXELS


def test_thousands_of_marks_are_drawn_quickly():
    marks = [
        Mark('rectangle', box=(x, y, x + 30, y + 30)) for x in range(0, 3900, 80) for y in range(0, 2900, 80)
    ]
    begin = time.process_time()
    picture = draw(Image.new('RGB', (4000, 3000)), marks)
    assert time.process_time() - begin < 5
    assert len(drawn_marks(picture).extents) == len(marks)
    with pytest.raises(ValueError, match='more than 10000 marks on one picture'):
        draw(Image.new('RGB', (99, 99)), itertools.repeat(marks[0]))


def test_memory_is_bounded():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shape in ('mask', 'mask contour', 'rectangle'):
        draw(Image.new('RGB', (4000, 4000)), Mark(shape, box=(0, 0, 4000, 4000)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10


def holds(polygon, x: float, y: float) -> bool:
    """Whether a point is inside, tested edge by edge: a ray to the right crosses an odd number of edges."""
    inside = False
    for (ax, ay), (bx, by) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (ay > y) != (by > y) and x < ax + (bx - ax) * (y - ay) / (by - ay):
            inside = not inside
    return inside


@given(
    st.lists(st.lists(inside, min_size=3, max_size=8), min_size=1, max_size=3), st.lists(inside, max_size=20)
)
def test_a_region_contains_the_points_of_every_polygon(polygons, points):
    region = Region((40, 40), (0, 0, 40, 40), tuple(map(tuple, polygons)), None)
    for x, y in [*points, *polygons[0]]:
        assert region.contains((x, y)) == any(holds(polygon, x, y) for polygon in polygons)
    x, y = region.inner_point()
    x1, y1, x2, y2 = region.bounds
    assert x1 <= x <= x2
    assert y1 <= y <= y2
