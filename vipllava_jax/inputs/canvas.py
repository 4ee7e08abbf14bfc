"""A transparent canvas on which the cost of drawing is bounded by the size of the picture.

Pillow draws lines of any width pixel by pixel, also far outside the picture. Here only visible parts are
drawn, with the same pixels as Pillow's, except that outlines with more corners than can be distinguished are
thinned.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Color = tuple[int, ...]  # red, green, blue, alpha
Bounds = tuple[int, int, int, int]  # left, top, right, bottom, in pixels; right and bottom are outside

# The limits of what Pillow draws directly, in at most a second.
MAX_OUTLINE_PIXELS = 10_000_000  # pixels of outlines, or image rows crossed by edges
MAX_EDGE_ROWS = 1_000_000_000  # image rows times edges
TILE = 1024  # pixels per side of the tiles that are composited


class Canvas:
    """An RGBA image of the size of a picture, and the bounds of what was drawn on it."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.image = Image.new('RGBA', size)
        self._draw = ImageDraw.Draw(self.image)
        self._changed: Bounds | None = None

    @property
    def max_width(self) -> int:
        """The width above which a line covers no more of the picture."""
        return 4 * max(self.size)

    def line(self, points: Sequence[Point], colour: Color, width: int, joint: str | None = None) -> None:
        """Segments from each point to the next."""
        width = min(width, self.max_width)
        # At a joint between two segments in one direction Pillow may draw far beyond the width.
        self._mark_changed(points, max(self.size) if joint else width)
        self._draw.line(points, colour, width, joint)

    def curve(self, points: np.ndarray, colour: Color, width: int) -> None:
        """A line through many close points N2; of the points within a pixel only the first is used."""
        pixels = points.astype(np.int64)  # as Pillow does
        moved = np.ones(len(pixels), bool)
        moved[1:] = (pixels[1:] != pixels[:-1]).any(axis=1)
        path, dots = pixels[moved], np.unique(pixels[~moved], axis=0)
        step = -(-len(path) * min(width, max(self.size)) // MAX_OUTLINE_PIXELS)
        if step > 1:
            path = np.concatenate([path[:-1:step], path[-1:]])
        self.line(list(map(tuple, path.tolist())), colour, width)
        self._draw.point(dots.ravel().tolist(), colour)  # as Pillow draws a segment of length 0

    def rectangle(self, box: tuple[float, float, float, float], colour: Color, width: int) -> None:
        """The outline of a box, drawn inwards; if wider than the box, it extends beyond it, as in Pillow."""
        x1, y1, x2, y2 = map(int, box)
        width = min(width, self.max_width)
        if 2 * width <= min(x2 - x1, y2 - y1):
            self._mark_changed(((x1, y1), (x2, y2)), 0)
            self._draw.rectangle((x1, y1, x2, y2), outline=colour, width=width)
            return
        start, stop = y1 + width, y2 - width + 1  # of the vertical lines, which may run upwards
        top, bottom = (start, stop - 1) if start < stop else (stop + 1, start)
        for part in (
            (x1, y1, x2, y1 + width - 1),
            (x1, y2 - width + 1, x2, y2),
            (x1, top, x1 + width - 1, bottom),
            (x2 - width + 1, top, x2, bottom),
        ):
            self._fill(part, colour)

    def _fill(self, box: Bounds, colour: Color) -> None:
        """Fills the part of a box, right and bottom included, that is on the picture."""
        x1, y1 = max(box[0], 0), max(box[1], 0)
        x2, y2 = min(box[2], self.size[0] - 1), min(box[3], self.size[1] - 1)
        if x1 <= x2 and y1 <= y2:
            self._mark_changed(((x1, y1), (x2, y2)), 0)
            self._draw.rectangle((x1, y1, x2, y2), fill=colour)

    def ellipse(
        self,
        box: tuple[float, float, float, float],
        *,
        fill: Color | None = None,
        outline: Color | None = None,
        width: int = 1,
    ) -> None:
        self._mark_changed((box[:2], box[2:]), 0)
        self._draw.ellipse(box, fill=fill, outline=outline, width=min(width, self.max_width))

    def polygon(self, corners: Sequence[Point], colour: Color) -> None:
        """A filled polygon."""
        corners = self._thinned(corners)
        self._mark_changed(corners, 0)
        self._draw.polygon(corners, fill=colour)

    def contour(self, polygons: Sequence[Sequence[Point]], colour: Color, reach: int) -> None:
        """The outlines of polygons, drawn at every offset of up to `reach` pixels in both directions."""
        reach = min(reach, max(self.size))
        thinned = [self._thinned(corners) for corners in polygons]
        corners = [corner for polygon in thinned for corner in polygon]
        self._mark_changed(corners, reach)
        pixels = sum(map(_length, thinned)) + 100 * len(corners)
        if (2 * reach + 1) ** 2 * pixels > 5 * MAX_OUTLINE_PIXELS:
            self._dilated_contour(thinned, self._clipped(corners, reach), colour, reach)
            return
        for polygon in thinned:
            for dx in range(-reach, reach + 1):
                for dy in range(-reach, reach + 1):
                    self._draw.polygon([(x + dx, y + dy) for x, y in polygon], outline=colour)

    def _dilated_contour(
        self, polygons: Sequence[Sequence[Point]], window: Bounds, colour: Color, reach: int
    ) -> None:
        """The same, drawn once and dilated.

        At the left and upper edges, where Pillow rounds towards zero, it may be a pixel wider.
        """
        lines = Image.new('1', self.size)
        pencil = ImageDraw.Draw(lines)
        for polygon in polygons:
            pencil.polygon(polygon, outline=1)
        grown = _dilated(_dilated(np.asarray(lines.crop(window)), reach).T, reach).T
        self.image.paste(colour, window, Image.fromarray(grown))

    def composite_onto(self, picture: Image.Image) -> Bounds | None:
        """Composites the drawing onto an RGB picture and clears the canvas; returns the changed bounds."""
        if self._changed is None:
            return None
        left, top, right, bottom = self._changed
        self._changed = None
        changed = None
        for y in range(top, bottom, TILE):
            for x in range(left, right, TILE):
                tile = (x, y, min(x + TILE, right), min(y + TILE, bottom))
                tile_image = self.image.crop(tile)
                if inner := tile_image.getbbox():
                    under = picture.crop(tile).convert('RGBA')
                    picture.paste(Image.alpha_composite(under, tile_image).convert('RGB'), tile)
                    self.image.paste((0, 0, 0, 0), tile)
                    changed = _union(changed, (inner[0] + x, inner[1] + y, inner[2] + x, inner[3] + y))
        return changed

    def _mark_changed(self, points: Sequence[Point], margin: float) -> None:
        """Records that pixels within a margin of the points may be drawn."""
        bounds = self._clipped(points, margin)
        if bounds[0] < bounds[2] and bounds[1] < bounds[3]:
            self._changed = _union(self._changed, bounds)

    def _clipped(self, points: Sequence[Point], margin: float) -> Bounds:
        """The bounding box of the points with a margin, and 2 pixels for rounding, clipped to the picture."""
        x, y = np.asarray(points).T
        return (
            max(math.floor(x.min() - margin) - 2, 0),
            max(math.floor(y.min() - margin) - 2, 0),
            min(math.ceil(x.max() + margin) + 3, self.size[0]),
            min(math.ceil(y.max() + margin) + 3, self.size[1]),
        )

    def _thinned(self, corners: Sequence[Point]) -> Sequence[Point]:
        """Every n-th corner; n is 1 unless the polygon crosses the picture many thousand times."""
        if len(corners) < MAX_OUTLINE_PIXELS // max(self.size):
            return corners
        height = np.ptp([y for _, y in corners]) + 1
        step = max(
            math.ceil(_length(corners) / MAX_OUTLINE_PIXELS), math.ceil(len(corners) * height / MAX_EDGE_ROWS)
        )
        return corners[::step] if step > 1 else corners


def _length(corners: Sequence[Point]) -> float:
    """The number of pixels of a polygon's outline."""
    ring = np.asarray([*corners, corners[0]])
    return float(np.abs(np.diff(ring, axis=0)).max(axis=1).sum())


def _dilated(mask: np.ndarray, reach: int) -> np.ndarray:
    """A mask -> True wherever the mask is true within `reach` columns to the left or right."""
    grown = np.empty(mask.shape, bool)
    rows = max((1 << 20) // mask.shape[1], 1)  # what a processor's cache holds
    for top in range(0, len(mask), rows):
        part, done = np.ascontiguousarray(mask[top : top + rows]), 0
        while step := min(done + 1, reach - done, mask.shape[1] - 1):
            # Each pass up to doubles the distance covered.
            wider = part.copy()
            wider[:, step:] |= part[:, :-step]
            wider[:, :-step] |= part[:, step:]
            part, done = wider, done + step
        grown[top : top + rows] = part
    return grown


def _union(one: Bounds | None, other: Bounds) -> Bounds:
    """The smallest box around both."""
    if one is None:
        return other
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])
