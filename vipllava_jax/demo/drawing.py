"""Draws a scene: the outlines of the things, their colours and patterns, and the background."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from vipllava_jax.demo.world import COLORS, SIDE, Scene, Thing

Points = list[tuple[float, float]]
Colour = tuple[int, int, int]
CIRCLE_CORNERS = 48
SCALE = 2  # the factor by which outlines are drawn larger, then reduced for antialiasing


def picture(scene: Scene) -> Image.Image:
    """A scene -> an RGB picture of SIDE x SIDE pixels, the same for the same scene."""
    rng = np.random.default_rng(scene.seed)
    image = _background(scene.background, rng)
    for thing in scene.things:
        _paint(image, thing, rng)
    return image


def outline(thing: Thing) -> Points:
    """The polygon of a thing, in pixels."""
    corners = _unit(thing.kind) @ _turn(thing.angle) * thing.radius + (thing.x, thing.y)
    return [(x, y) for x, y in corners.tolist()]


def _turn(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, s], [-s, c]])


@cache
def _unit(kind: str) -> np.ndarray:
    """The polygon of a kind of thing, with y downwards, scaled to fit a circle of radius 1."""
    corners = np.array(_OUTLINES[kind]())
    return corners / max(np.hypot(*corners.T).max(), 1e-9)


def _arc(radius: float, first: float, last: float, x: float = 0, y: float = 0, n: int = 24) -> Points:
    """Points on a circle from one angle to another, in degrees, clockwise from the positive x axis."""
    angles = np.radians(np.linspace(first, last, n))
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def _star() -> Points:
    spokes = [(1 if i % 2 == 0 else 0.42, math.radians(36 * i - 90)) for i in range(10)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in spokes]


def _heart() -> Points:
    t = np.linspace(0, 2 * math.pi, 36, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2.5
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _cross() -> Points:
    a, b = 0.3, 0.95
    return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a),
            (-a, -a)]  # fmt: skip


def _tree() -> Points:
    return [(0, -1), (0.5, -0.3), (0.28, -0.3), (0.72, 0.45), (0.16, 0.45), (0.16, 0.95), (-0.16, 0.95),
            (-0.16, 0.45), (-0.72, 0.45), (-0.28, -0.3), (-0.5, -0.3)]  # fmt: skip


def _bolt() -> Points:
    return [(0.5, -1), (-0.75, 0.2), (-0.1, 0.2), (-0.5, 1), (0.75, -0.3), (0.15, -0.3)]


def _house() -> Points:
    return [
        (0, -0.95),
        (0.85, -0.15),
        (0.62, -0.15),
        (0.62, 0.8),
        (-0.62, 0.8),
        (-0.62, -0.15),
        (-0.85, -0.15),
    ]


def _fish() -> Points:
    body = _arc(0.6, 150, -150, x=0.25, n=28)
    return [(x, y * 0.8) for x, y in body] + [(-0.95, -0.5), (-0.75, 0.0), (-0.95, 0.5)]


_OUTLINES = {
    'ball': lambda: _arc(1, 0, 352.5, n=CIRCLE_CORNERS),
    'square': lambda: [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    'star': _star,
    'heart': _heart,
    'cross': _cross,
    # A single polygon: the outer circle clockwise, then the inner circle back, which leaves a hole.
    'ring': lambda: _arc(1, 0, 360, n=CIRCLE_CORNERS) + _arc(0.52, 360, 0, n=36),
    'moon': lambda: _arc(1, 45, 315, n=36) + _arc(0.72, 284, 76, x=0.53, n=28),
    'diamond': lambda: [(0, -1), (0.66, 0), (0, 1), (-0.66, 0)],
    'drop': lambda: [(0, -1), *_arc(0.58, -25, 205, y=0.4, n=28)],
    'bolt': _bolt,
    'tree': _tree,
    'house': _house,
    'fish': _fish,
}


def _paint(image: Image.Image, thing: Thing, rng: np.random.Generator) -> None:
    corners = np.array(outline(thing))
    left, top = (int(c) - 3 for c in corners.min(axis=0))
    width, height = (math.ceil(c) + 4 for c in np.ptp(corners, axis=0))
    local = [(SCALE * (x - left), SCALE * (y - top)) for x, y in corners.tolist()]
    size = (width * SCALE, height * SCALE)
    inside, edge = Image.new('L', size), Image.new('L', size)
    ImageDraw.Draw(inside).polygon(local, fill=255)
    pen = ImageDraw.Draw(edge)
    for part in [local[:CIRCLE_CORNERS], local[CIRCLE_CORNERS:]] if thing.kind == 'ring' else [local]:
        pen.line([*part, part[0]], fill=255, width=2 * SCALE, joint='curve')
    red, green, blue = np.clip(np.array(COLORS[thing.color]) + rng.integers(-10, 11, 3), 0, 255).tolist()
    base = (red, green, blue)
    cloth = _cloth(thing.texture, (width, height), base, rng)
    image.paste(cloth, (left, top), inside.reduce(SCALE))
    image.paste(tuple(c // 3 for c in base), (left, top, left + width, top + height), edge.reduce(SCALE))


def _cloth(texture: str, size: tuple[int, int], base: Colour, rng: np.random.Generator) -> Image.Image:
    """A rectangle filled with a pattern of the base colour and a lighter or darker shade of it."""
    cloth = Image.new('RGB', size, base)
    if texture == 'plain':
        return cloth
    bright = 0.3 * base[0] + 0.59 * base[1] + 0.11 * base[2] > 145
    shade = tuple(int(0.55 * c) if bright else int(0.6 * c + 0.4 * 255) for c in base)
    pen, step = ImageDraw.Draw(cloth), int(rng.integers(7, 10))
    (width, height), (dx, dy) = size, rng.integers(0, 2 * step, 2).tolist()
    if texture == 'striped':
        for y in range(dy - 2 * step, height, 2 * step):
            pen.rectangle((0, y, width, y + step - 1), fill=shade)
        return cloth
    for j, y in enumerate(range(dy - 2 * step, height, step)):
        for x in range(dx - 2 * step + (j % 2) * step, width, 2 * step):
            if texture == 'checked':
                pen.rectangle((x, y, x + step - 1, y + step - 1), fill=shade)
            elif j % 2 == 0:
                pen.ellipse((x, y, x + step, y + step), fill=shade)
    return cloth


def _background(name: str, rng: np.random.Generator) -> Image.Image:
    """A light background with little colour, so that things and marks stand out."""
    first, second = (rng.integers(165, 236, 3) for _ in range(2))
    if name == 'flat':
        return Image.new('RGB', (SIDE, SIDE), tuple(first.tolist()))
    coarse = 24  # samples per side, enough for smooth backgrounds
    y, x = np.mgrid[0:coarse, 0:coarse] / (coarse - 1)
    if name == 'slope':
        angle = rng.uniform(0, 2 * math.pi)
        share = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle) + 0.5
    elif name == 'glow':
        cx, cy = rng.uniform(0.2, 0.8, 2)
        share = np.hypot(x - cx, y - cy)
    elif name == 'clouds':
        small = Image.fromarray(rng.integers(0, 256, (6, 6), np.uint8))
        share = np.asarray(small.resize((coarse, coarse), Image.Resampling.BICUBIC)) / 255
    else:
        share = rng.uniform(0, 1, (84, 84))
    mixed = first + np.clip(share, 0, 1)[..., None] * (second - first)
    resample = Image.Resampling.NEAREST if name == 'grain' else Image.Resampling.BILINEAR
    return Image.fromarray(mixed.astype(np.uint8)).resize((SIDE, SIDE), resample)
