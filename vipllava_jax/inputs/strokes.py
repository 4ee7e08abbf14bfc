"""Draws each shape on a transparent canvas, with fixed choices or with random ones as in training."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vipllava_jax.inputs.canvas import Canvas, Color, Point


class Variation(NamedTuple):
    """The choices that a mark leaves open: fixed ones without a random generator, random ones with one."""

    rng: np.random.Generator | None = None

    def integer(self, low: float, high: float, fixed: float) -> int:
        """An integer from int(low) to int(high) inclusive, at least 1."""
        number = fixed if self.rng is None else self.rng.integers(int(low), int(high), endpoint=True)
        return max(int(number), 1)

    def number(self, low: float, high: float, fixed: float) -> float:
        """A number between low and high, in either order."""
        return fixed if self.rng is None else low + (high - low) * self.rng.random()

    def boolean(self, fixed: bool) -> bool:
        """True or false with equal probability."""
        return fixed if self.rng is None else bool(self.rng.random() < 0.5)


@dataclass(frozen=True)
class Region:
    """The region of a mark, in pixels of a picture of this size."""

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    polygons: tuple[tuple[Point, ...], ...]  # none if only the box is known
    point: Point | None

    @cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box around the polygons, or the box."""
        if not self.polygons:
            return self.box
        x, y = zip(*(point for polygon in self.polygons for point in polygon), strict=True)
        return min(x), min(y), max(x), max(y)

    @property
    def areas(self) -> tuple[tuple[Point, ...], ...]:
        """The polygons, or the box as one."""
        x1, y1, x2, y2 = self.box
        return self.polygons or (((x1, y1), (x2, y1), (x2, y2), (x1, y2)),)

    def pick_polygon(self, vary: Variation) -> 'Region':
        """The region with only one of its polygons."""
        return replace(self, polygons=(self.areas[vary.integer(1, len(self.areas), 1) - 1],))

    def contains(self, point: Point) -> bool:
        return bool(self._contains(np.array([point[0]]), point[1]).any())

    def random_point(self, vary: Variation) -> Point:
        """A random point: the first of 50 in the bounds that falls inside the areas, or else the last."""
        x1, y1, x2, y2 = self.bounds
        flat = x1 == x2 or y1 == y2  # nothing falls inside
        for _ in range(50):
            point = vary.number(x1, x2, (x1 + x2) / 2), vary.number(y1, y2, (y1 + y2) / 2)
            if not flat and self.contains(point):
                break
        return point

    def inner_point(self) -> Point:
        """The centre or, if it is outside the areas, the nearest of some points that are inside."""
        x1, y1, x2, y2 = self.bounds
        columns = [x1 + (x2 - x1) * i / 20 for i in range(1, 20)]
        rows = [y1 + (y2 - y1) * j / 20 for j in range(1, 20)]
        contained = np.stack([self._contains(np.array(columns), y) for y in rows])
        inside = [(x, y) for i, x in enumerate(columns) for j, y in enumerate(rows) if contained[j, i]]
        centre = columns[9], rows[9]
        return min(inside, key=lambda p: math.dist(p, centre), default=centre)

    def _contains(self, x: np.ndarray, y: float) -> np.ndarray:
        """Which of the points (x, y) lie in an area.

        A ray to the right of such a point crosses the outline an odd number of times.
        """
        inside = np.zeros(len(x), bool)
        for ax, ay, bx, by in self._edges:
            crosses = (ay > y) != (by > y)
            ax, ay, bx, by = ax[crosses], ay[crosses], bx[crosses], by[crosses]
            crossings = np.sort(ax + (bx - ax) * (y - ay) / (by - ay))
            inside |= (len(crossings) - np.searchsorted(crossings, x, side='right')) % 2 == 1
        return inside

    @cached_property
    def _edges(self) -> list[tuple[np.ndarray, ...]]:
        """The coordinates x1, y1, x2, y2 of the edges of each area."""
        rings = [np.array(area, float) for area in self.areas]
        return [(*ring.T, *np.roll(ring, -1, axis=0).T) for ring in rings]


class Pen(NamedTuple):
    """Where and with what to draw; sizes are in units of `scale`, the longer side of the picture over 336."""

    canvas: Canvas
    colour: Color
    scale: float
    width: float | None  # the width of lines in units of scale; None: the variation decides

    def line_width(self, vary: Variation, low: float, high: float) -> int:
        """A line's width in pixels, from low to high units of scale; 3 if it is fixed."""
        s = self.scale
        return vary.integer(low * s, high * s, 3 * s) if self.width is None else self.to_pixels(self.width)

    def to_pixels(self, width: float) -> int:
        """A width in units of scale -> in pixels, at least 1 and at most the widest visible one."""
        return max(int(min(width * self.scale, self.canvas.max_width)), 1)


def rectangle(pen: Pen, region: Region, vary: Variation) -> None:
    pen.canvas.rectangle(region.box, pen.colour, pen.line_width(vary, 2, 8))


def ellipse(pen: Pen, region: Region, vary: Variation) -> None:
    x1, y1, x2, y2 = region.bounds
    growth = (vary.number(1, 1.5, 1.25) - 1) / 2
    dx, dy = growth * (x2 - x1), growth * (y2 - y1)
    pen.canvas.ellipse(
        (x1 - dx, y1 - dy, x2 + dx, y2 + dy), outline=pen.colour, width=pen.line_width(vary, 2, 8)
    )


def triangle(pen: Pen, region: Region, vary: Variation) -> None:
    """Three random corners inside, not almost on a line; fixed: the polygon's, or upright in the box."""
    if vary.rng is None:
        x1, y1, x2, y2 = region.box
        corners = (
            _spread(region.polygons[0], 3) if region.polygons else [((x1 + x2) / 2, y1), (x2, y2), (x1, y2)]
        )
    else:
        for _ in range(50):
            corners = [region.random_point(vary) for _ in range(3)]
            if _largest_angle(corners) <= 150:
                break
    pen.canvas.line([*corners, corners[0]], pen.colour, pen.line_width(vary, 2, 8), joint='curve')


def _spread(polygon: tuple[Point, ...], n: int) -> list[Point]:
    """n of a polygon's corners, evenly spaced."""
    return [polygon[len(polygon) * i // n] for i in range(n)]


def _largest_angle(corners: list[Point]) -> float:
    """The largest angle of a triangle, in degrees."""
    a, b, c = sorted(math.dist(corners[i], corners[i - 1]) for i in range(3))
    return math.degrees(math.acos(max((a * a + b * b - c * c) / (2 * a * b), -1))) if a else 180


def point(pen: Pen, region: Region, vary: Variation) -> None:
    """A filled disc at the given point or in the middle; with random choices it may be an oval."""
    radius = vary.integer(5 * pen.scale, 20 * pen.scale, 8 * pen.scale)
    aspect = 1.0 if vary.boolean(True) else vary.number(0.5, 2, 1)
    x, y = region.point or _point_near_center(region, vary)
    rx, ry = radius * aspect, radius / aspect
    pen.canvas.ellipse((x - rx, y - ry, x + rx, y + ry), fill=pen.colour)


def _point_near_center(region: Region, vary: Variation) -> Point:
    if vary.rng is None:
        return region.inner_point()
    region = region.pick_polygon(vary)
    x1, y1, x2, y2 = region.bounds
    for _ in range(11):
        x = vary.rng.normal((x1 + x2) / 2, math.sqrt((x2 - x1) / 8))
        y = vary.rng.normal((y1 + y2) / 2, math.sqrt((y2 - y1) / 8))
        if region.contains((x, y)):
            break
    return x, y


def scribble(pen: Pen, region: Region, vary: Variation) -> None:
    """A cubic Bezier curve with four control points inside; fixed: the polygon's corners, or an S."""
    if vary.rng is not None:
        region = region.pick_polygon(vary)
        controls = [region.random_point(vary) for _ in range(4)]
    elif region.polygons:
        controls = _spread(region.polygons[0], 4)
    else:
        x1, y1, x2, y2 = region.box
        shape = ((0.1, 0.8), (0.4, -0.4), (0.6, 1.4), (0.9, 0.2))
        controls = [(x1 + x * (x2 - x1), y1 + y * (y2 - y1)) for x, y in shape]
    t = np.linspace(0, 1, max(int(1000 * pen.scale), 2))[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    pen.canvas.curve(weights @ np.array(controls), pen.colour, pen.line_width(vary, 2, 12))


def mask(pen: Pen, region: Region, vary: Variation) -> None:
    for polygon in region.areas:
        pen.canvas.polygon(polygon, pen.colour)


def mask_contour(pen: Pen, region: Region, vary: Variation) -> None:
    reach = (
        vary.integer(pen.scale, 2 * pen.scale, pen.scale) if pen.width is None else pen.to_pixels(pen.width)
    )
    pen.canvas.contour(region.areas, pen.colour, reach)


def arrow(pen: Pen, region: Region, vary: Variation) -> None:
    """An arrow whose tip is at the given point or near the centre of the box.

    With fixed choices, its tail points to the middle of the picture, so that it is not cut off.
    """
    s, (x1, y1, x2, y2) = pen.scale, region.box
    x, y = region.point or (
        (x1 + x2) / 2 + vary.number(-0.25, 0.25, 0) * (x2 - x1),
        (y1 + y2) / 2 + vary.number(-0.25, 0.25, 0) * (y2 - y1),
    )
    long = max(int(50 * s), 1)
    short = 0.8 * min(x2 - x1, y2 - y1) or long
    length = vary.number(short, long, (short + long) / 2)
    angle = vary.number(0, 2 * math.pi, math.atan2(region.size[1] / 2 - y, region.size[0] / 2 - x))
    head = max(vary.number(0.2, 0.5, 0.35) * length, int(6 * s))

    def along(distance: float, turn: float = 0) -> Point:
        return x + distance * math.cos(angle + turn), y + distance * math.sin(angle + turn)

    width, shaft = pen.line_width(vary, 1, 6), [(x, y), along(length - head)]
    if not vary.boolean(True):
        bend = (coordinate + vary.number(-5, 5, 0) * int(s) for coordinate in along((length - head) / 2))
        shaft.insert(1, (next(bend), next(bend)))
    pen.canvas.line(shaft, pen.colour, width)
    left, right = along(head, math.radians(60)), along(head, math.radians(-60))
    if vary.boolean(True):
        pen.canvas.polygon([(x, y), left, right], pen.colour)
    else:
        pen.canvas.line([left, (x, y), right], pen.colour, width)


STROKES: dict[str, Callable[[Pen, Region, Variation], None]] = {
    'rectangle': rectangle,
    'ellipse': ellipse,
    'triangle': triangle,
    'point': point,
    'scribble': scribble,
    'mask': mask,
    'mask contour': mask_contour,
    'arrow': arrow,
}
