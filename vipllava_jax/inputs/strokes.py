"""Draws each shape on a transparent canvas, with fixed choices or with random ones as in training."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vipllava_jax.inputs.canvas import Canvas, Colour, Point


class Hand(NamedTuple):
    """Makes the choices that a mark leaves open: fixed ones without a generator, random ones with one."""

    rng: np.random.Generator | None = None

    def whole(self, low: float, high: float, fixed: float) -> int:
        """A whole number from int(low) to int(high) inclusive, at least 1."""
        number = fixed if self.rng is None else self.rng.integers(int(low), int(high), endpoint=True)
        return max(int(number), 1)

    def real(self, low: float, high: float, fixed: float) -> float:
        """A number between low and high, whichever is the smaller."""
        return fixed if self.rng is None else low + (high - low) * self.rng.random()

    def coin(self, fixed: bool) -> bool:
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

    def pick(self, hand: Hand) -> 'Region':
        """One polygon of several."""
        return replace(self, polygons=(self.areas[hand.whole(1, len(self.areas), 1) - 1],))

    def holds(self, point: Point) -> bool:
        return bool(self._hold(np.array([point[0]]), point[1]).any())

    def anywhere(self, hand: Hand) -> Point:
        """A random point: the first of 50 in the bounds that falls inside the areas, or else the last."""
        x1, y1, x2, y2 = self.bounds
        flat = x1 == x2 or y1 == y2  # nothing falls inside
        for _ in range(50):
            point = hand.real(x1, x2, (x1 + x2) / 2), hand.real(y1, y2, (y1 + y2) / 2)
            if not flat and self.holds(point):
                break
        return point

    def middle(self) -> Point:
        """The centre or, if it is outside the areas, the nearest of some points that are inside."""
        x1, y1, x2, y2 = self.bounds
        columns = [x1 + (x2 - x1) * i / 20 for i in range(1, 20)]
        rows = [y1 + (y2 - y1) * j / 20 for j in range(1, 20)]
        held = np.stack([self._hold(np.array(columns), y) for y in rows])
        inside = [(x, y) for i, x in enumerate(columns) for j, y in enumerate(rows) if held[j, i]]
        centre = columns[9], rows[9]
        return min(inside, key=lambda p: math.dist(p, centre), default=centre)

    def _hold(self, x: np.ndarray, y: float) -> np.ndarray:
        """Which of the points (x, y) lie in an area.

        A ray to the right of such a point crosses the outline an odd number of times.
        """
        held = np.zeros(len(x), bool)
        for ax, ay, bx, by in self._edges:
            met = (ay > y) != (by > y)
            ax, ay, bx, by = ax[met], ay[met], bx[met], by[met]
            crossings = np.sort(ax + (bx - ax) * (y - ay) / (by - ay))
            held |= (len(crossings) - np.searchsorted(crossings, x, side='right')) % 2 == 1
        return held

    @cached_property
    def _edges(self) -> list[tuple[np.ndarray, ...]]:
        """The coordinates x1, y1, x2, y2 of the edges of each area."""
        rings = [np.array(area, float) for area in self.areas]
        return [(*ring.T, *np.roll(ring, -1, axis=0).T) for ring in rings]


class Pen(NamedTuple):
    """Where and with what to draw: sizes grow with s, the longer side of the picture over 336."""

    canvas: Canvas
    colour: Colour
    s: float
    width: float | None  # of lines, in units of s, instead of the hand's choice

    def stroke(self, hand: Hand, low: float, high: float) -> int:
        """A line's width in pixels; 3 s if fixed."""
        s = self.s
        return hand.whole(low * s, high * s, 3 * s) if self.width is None else self.pixels(self.width)

    def pixels(self, width: float) -> int:
        """A width in units of s -> in pixels, at least 1 and at most the widest visible one."""
        return max(int(min(width * self.s, self.canvas.widest)), 1)


def rectangle(pen: Pen, region: Region, hand: Hand) -> None:
    pen.canvas.rectangle(region.box, pen.colour, pen.stroke(hand, 2, 8))


def ellipse(pen: Pen, region: Region, hand: Hand) -> None:
    x1, y1, x2, y2 = region.bounds
    grow = (hand.real(1, 1.5, 1.25) - 1) / 2
    dx, dy = grow * (x2 - x1), grow * (y2 - y1)
    pen.canvas.ellipse((x1 - dx, y1 - dy, x2 + dx, y2 + dy), outline=pen.colour, width=pen.stroke(hand, 2, 8))


def triangle(pen: Pen, region: Region, hand: Hand) -> None:
    """Three corners inside, none of them flat; fixed: three of a polygon's own, or upright in the box."""
    if hand.rng is None:
        x1, y1, x2, y2 = region.box
        corners = (
            _spread(region.polygons[0], 3) if region.polygons else [((x1 + x2) / 2, y1), (x2, y2), (x1, y2)]
        )
    else:
        for _ in range(50):
            corners = [region.anywhere(hand) for _ in range(3)]
            if _widest(corners) <= 150:
                break
    pen.canvas.line([*corners, corners[0]], pen.colour, pen.stroke(hand, 2, 8), joint='curve')


def _spread(polygon: tuple[Point, ...], n: int) -> list[Point]:
    """n of a polygon's corners, evenly spaced."""
    return [polygon[len(polygon) * i // n] for i in range(n)]


def _widest(corners: list[Point]) -> float:
    """The largest angle of a triangle, in degrees."""
    a, b, c = sorted(math.dist(corners[i], corners[i - 1]) for i in range(3))
    return math.degrees(math.acos(max((a * a + b * b - c * c) / (2 * a * b), -1))) if a else 180


def point(pen: Pen, region: Region, hand: Hand) -> None:
    """A filled disc, when varied also an oval, in the middle or at the very point asked for."""
    radius = hand.whole(5 * pen.s, 20 * pen.s, 8 * pen.s)
    aspect = 1.0 if hand.coin(True) else hand.real(0.5, 2, 1)
    x, y = region.point or _near_middle(region, hand)
    rx, ry = radius * aspect, radius / aspect
    pen.canvas.ellipse((x - rx, y - ry, x + rx, y + ry), fill=pen.colour)


def _near_middle(region: Region, hand: Hand) -> Point:
    if hand.rng is None:
        return region.middle()
    region = region.pick(hand)
    x1, y1, x2, y2 = region.bounds
    for _ in range(11):
        x = hand.rng.normal((x1 + x2) / 2, math.sqrt((x2 - x1) / 8))
        y = hand.rng.normal((y1 + y2) / 2, math.sqrt((y2 - y1) / 8))
        if region.holds((x, y)):
            break
    return x, y


def scribble(pen: Pen, region: Region, hand: Hand) -> None:
    """A cubic Bezier curve with four control points inside; fixed: a polygon's own, or an S in the box."""
    if hand.rng is not None:
        region = region.pick(hand)
        controls = [region.anywhere(hand) for _ in range(4)]
    elif region.polygons:
        controls = _spread(region.polygons[0], 4)
    else:
        x1, y1, x2, y2 = region.box
        shape = ((0.1, 0.8), (0.4, -0.4), (0.6, 1.4), (0.9, 0.2))
        controls = [(x1 + x * (x2 - x1), y1 + y * (y2 - y1)) for x, y in shape]
    t = np.linspace(0, 1, max(int(1000 * pen.s), 2))[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    pen.canvas.curve(weights @ np.array(controls), pen.colour, pen.stroke(hand, 2, 12))


def mask(pen: Pen, region: Region, hand: Hand) -> None:
    for polygon in region.areas:
        pen.canvas.polygon(polygon, pen.colour)


def mask_contour(pen: Pen, region: Region, hand: Hand) -> None:
    reach = hand.whole(pen.s, 2 * pen.s, pen.s) if pen.width is None else pen.pixels(pen.width)
    pen.canvas.contour(region.areas, pen.colour, reach)


def arrow(pen: Pen, region: Region, hand: Hand) -> None:
    """Its tip is near the centre of the box or at the very point asked for; fixed, its tail is toward the
    middle of the picture, so that it is not cut off."""
    s, (x1, y1, x2, y2) = pen.s, region.box
    x, y = region.point or (
        (x1 + x2) / 2 + hand.real(-0.25, 0.25, 0) * (x2 - x1),
        (y1 + y2) / 2 + hand.real(-0.25, 0.25, 0) * (y2 - y1),
    )
    long = max(int(50 * s), 1)
    short = 0.8 * min(x2 - x1, y2 - y1) or long
    length = hand.real(short, long, (short + long) / 2)
    angle = hand.real(0, 2 * math.pi, math.atan2(region.size[1] / 2 - y, region.size[0] / 2 - x))
    head = max(hand.real(0.2, 0.5, 0.35) * length, int(6 * s))

    def along(distance: float, turn: float = 0) -> Point:
        return x + distance * math.cos(angle + turn), y + distance * math.sin(angle + turn)

    width, shaft = pen.stroke(hand, 1, 6), [(x, y), along(length - head)]
    if not hand.coin(True):
        bend = (coordinate + hand.real(-5, 5, 0) * int(s) for coordinate in along((length - head) / 2))
        shaft.insert(1, (next(bend), next(bend)))
    pen.canvas.line(shaft, pen.colour, width)
    left, right = along(head, math.radians(60)), along(head, math.radians(-60))
    if hand.coin(True):
        pen.canvas.polygon([(x, y), left, right], pen.colour)
    else:
        pen.canvas.line([left, (x, y), right], pen.colour, width)


STROKES: dict[str, Callable[[Pen, Region, Hand], None]] = {
    'rectangle': rectangle,
    'ellipse': ellipse,
    'triangle': triangle,
    'point': point,
    'scribble': scribble,
    'mask': mask,
    'mask contour': mask_contour,
    'arrow': arrow,
}
