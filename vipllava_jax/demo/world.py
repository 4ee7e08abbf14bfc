"""Generates the scenes of the demo model's world: coloured things at random positions."""

import math
import zlib
from dataclasses import dataclass
from random import Random

SIDE = 336  # pixels per side of a picture
KINDS = (
    'ball', 'square', 'star', 'heart', 'cross', 'ring', 'moon', 'diamond', 'drop', 'bolt', 'tree', 'house',
)  # fmt: skip
NEW_KIND = 'fish'  # not in scenes by default: a kind to teach the model
COLORS = {
    'white': (242, 242, 240),
    'black': (28, 28, 30),
    'grey': (130, 132, 135),
    'brown': (122, 72, 36),
    'pink': (246, 168, 188),
    'green': (42, 116, 52),
    'navy': (30, 44, 112),
    'teal': (62, 150, 150),
}  # RGB; different from the colours of marks
SIZES = {'small': (32, 36), 'medium': (45, 51), 'large': (64, 72)}  # the range of the radius in pixels
TEXTURES = ('plain', 'striped', 'dotted', 'checked')
BACKGROUNDS = ('flat', 'slope', 'glow', 'clouds', 'grain')
MIN_THINGS, MAX_THINGS = 3, 7  # per scene


@dataclass(frozen=True)
class Thing:
    """A thing in a scene: its attributes, and its position in pixels."""

    kind: str
    color: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float  # radians

    @property
    def short(self) -> str:
        return f'{self.color} {self.kind}'

    @property
    def long(self) -> str:
        texture = '' if self.texture == 'plain' else f'{self.texture} '
        return f'{self.size} {texture}{self.color} {self.kind}'


@dataclass(frozen=True)
class Scene:
    """A background, and things in the order in which they are painted."""

    things: tuple[Thing, ...]
    background: str
    seed: int  # of the random details of drawing


def make_scene(rng: Random, kinds: tuple[str, ...] = KINDS) -> Scene:
    """A random scene, in which things overlap slightly at most."""
    count = rng.randint(MIN_THINGS, MAX_THINGS)
    things: list[Thing] = []
    scene_kinds = rng.sample(
        kinds, min(len(kinds), rng.randint(2, 6))
    )  # fewer kinds than things, so that some things share a kind
    colors = rng.sample(tuple(COLORS), rng.randint(2, 6))
    for _ in range(80):
        if thing := _random_thing(rng, things, scene_kinds, colors):
            things.append(thing)
        if len(things) == count:
            break
    return Scene(tuple(things), rng.choice(BACKGROUNDS), rng.getrandbits(32))


def _random_thing(rng: Random, things: list[Thing], kinds: list[str], colors: list[str]) -> Thing | None:
    """A random thing at a random position; None if it would overlap others too much."""
    large = sum(thing.size == 'large' for thing in things)
    size = rng.choice(('small', 'medium', 'large') if large < 2 else ('small', 'medium'))
    radius = rng.uniform(*SIZES[size])
    x, y = (rng.uniform(radius + 4, SIDE - radius - 4) for _ in 'xy')
    if any(math.hypot(x - o.x, y - o.y) < 0.9 * (radius + o.radius) for o in things):
        return None
    kind, color = rng.choice(kinds), rng.choice(colors)
    return Thing(kind, color, size, rng.choice(TEXTURES), x, y, radius, rng.uniform(-0.25, 0.25))


def held_out(kind: str, color: str, shape: str) -> bool:
    """Whether training never marks things of this kind and colour with this shape."""
    return zlib.crc32(f'{kind} {color} {shape}'.encode()) % 10 == 0
