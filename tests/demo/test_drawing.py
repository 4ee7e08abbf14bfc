"""Things are drawn inside their outlines, in their colours, and differ from each other."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vipllava_jax.demo.drawing import outline, picture
from vipllava_jax.demo.world import BACKGROUNDS, COLORS, KINDS, NEW_KIND, SIDE, TEXTURES, Scene, Thing

THING = Thing('ball', 'navy', 'large', 'plain', 160.0, 150.0, 70.0, 0.1)


def inside(thing: Thing) -> np.ndarray:
    canvas = Image.new('1', (SIDE, SIDE))
    ImageDraw.Draw(canvas).polygon(outline(thing), fill=1)
    return np.asarray(canvas)


def seen(thing: Thing, background: str = 'flat') -> np.ndarray:
    return np.asarray(picture(Scene((thing,), background, 1)), int)


@pytest.mark.parametrize('kind', [*KINDS, NEW_KIND])
def test_a_thing_is_painted_within_its_outline(kind):
    thing = dataclasses.replace(THING, kind=kind)
    empty = np.asarray(picture(Scene((), 'flat', 1)), int)
    painted = np.abs(seen(thing) - empty).max(axis=2) > 0
    assert (painted ^ inside(thing)).sum() < 0.02 * SIDE**2
    assert np.abs(np.subtract(outline(thing), (thing.x, thing.y))).max() <= thing.radius
    off = np.abs(np.median(seen(thing)[inside(thing)], axis=0) - COLORS[thing.color])
    assert off.max() <= 10


def test_all_kinds_look_different():
    shapes = {kind: inside(dataclasses.replace(THING, kind=kind)) for kind in (*KINDS, NEW_KIND)}
    for a, b in itertools.combinations(shapes.values(), 2):
        assert (a & b).sum() < 0.85 * (a | b).sum()


@pytest.mark.parametrize('color', COLORS)
def test_every_pattern_is_visible_on_every_colour(color):
    seen_ = {t: seen(dataclasses.replace(THING, color=color, texture=t)) for t in TEXTURES}
    for a, b in itertools.combinations(TEXTURES, 2):
        changed = np.abs(seen_[a] - seen_[b]).max(axis=2)[inside(THING)] > 40
        assert 0.1 < changed.mean() < 0.9


@pytest.mark.parametrize('background', BACKGROUNDS)
def test_backgrounds_are_light_and_different(background):
    pictures = [np.asarray(picture(Scene((), background, seed)), int) for seed in range(8)]
    assert min(p.min() for p in pictures) > 150
    assert all((a != b).any() for a, b in itertools.combinations(pictures, 2))
