"""Puts random marks on the things of a scene, with the variation of training or the fixed style."""

from collections.abc import Sequence
from random import Random
from typing import Literal, NamedTuple

from PIL import Image

from vipllava_jax.demo.drawing import outline
from vipllava_jax.demo.world import SIDE, Scene, Thing, held_out
from vipllava_jax.inputs.marks import COLORS, PREPOSITIONS, Mark, draw

Split = Literal['training', 'held out']
SHAPES = tuple(PREPOSITIONS)
# Mark colours that are too similar, when translucent, to distinguish two marks of the same shape.
CONFUSABLE_COLORS = (
    *({'orange', 'gold', 'yellow'}, {'red', 'orange'}, {'fuchsia', 'purple'}, {'blue', 'purple'}),
    *({'lime', 'aqua'}, {'fuchsia', 'red'}),
)
SIMILAR_SHAPES = {'triangle', 'scribble', 'arrow'}  # shapes that look similar on small things
# The range of alpha of a mask. A wider one is ambiguous: faint blue on navy looks like strong blue on black.
MASK_ALPHA = (96, 128)


class Marked(NamedTuple):
    """A mark, and the index of the thing in the scene that it is on."""

    mark: Mark
    thing: int


def make_marks(rng: Random, scene: Scene, count: int, split: Split = 'training') -> list[Marked]:
    """At most `count` marks on different things; kind, colour and shape are combinations of the split."""
    marks: list[Marked] = []
    for _ in range(40 * count):
        if len(marks) == count:
            break
        index, shape = rng.randrange(len(scene.things)), rng.choice(SHAPES)
        if marks and split == 'training' and rng.random() < 0.25:
            shape = marks[0].mark.shape  # share a shape as often as held-out pairs: 1 in 5, by chance 1 in 10
        color = rng.choice(tuple(COLORS))
        thing = scene.things[index]
        in_split = held_out(thing.kind, thing.color, shape) == (split == 'held out')
        if in_split and index not in [m.thing for m in marks] and not _confusable(shape, color, marks):
            marks.append(Marked(make_mark(rng, thing, shape, color), index))
    return marks


def _confusable(shape: str, color: str, marks: Sequence[Marked]) -> bool:
    return any(
        look_alike(shape, other.shape)
        and (color == other.color or any({color, other.color} <= set for set in CONFUSABLE_COLORS))
        for other, _ in marks
    )


def look_alike(shape: str, other: str) -> bool:
    """Whether two marks of these shapes can be confused unless their colours differ."""
    return shape == other or {shape, other} <= SIMILAR_SHAPES


def make_mark(rng: Random, thing: Thing, shape: str, color: str) -> Mark:
    """A mark on a thing, with the thing's polygon, or only with a loose box around it."""
    polygon = outline(thing)
    x, y = zip(*polygon, strict=True)
    slack = [rng.uniform(-1, 5) for _ in range(4)]
    low = (max(min(x) - slack[0], 0), max(min(y) - slack[1], 0))
    high = (min(max(x) + slack[2], SIDE), min(max(y) + slack[3], SIDE))
    box = tuple(round(c, 1) for c in (*low, *high))
    alpha = rng.randint(*MASK_ALPHA) if shape == 'mask' else None
    if shape in ('rectangle', 'ellipse', 'arrow') or (shape != 'mask contour' and rng.random() < 0.25):
        return Mark(shape, box=box, color=color, alpha=alpha)
    corners = [(round(px, 1), round(py, 1)) for px, py in polygon]
    return Mark(shape, box=box, polygon=corners, color=color, alpha=alpha)


def draw_marks(image: Image.Image, marks: Sequence[Marked], seed: int | None) -> Image.Image:
    """A picture with the marks drawn on it; with a seed they vary as in training."""
    return draw(image, [marked.mark for marked in marks], seed)
