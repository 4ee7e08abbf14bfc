"""Scenes are reproducible from a seed, and their things fit the picture."""

import itertools
import math
from random import Random

from vipllava_jax.demo.world import COLORS, KINDS, MAX_THINGS, MIN_THINGS, NEW_KIND, SIDE, SIZES, make_scene

SCENES = [make_scene(Random(seed)) for seed in range(300)]


def test_the_same_seed_gives_the_same_scene():
    assert SCENES[:5] == [make_scene(Random(seed)) for seed in range(5)]
    assert len(set(SCENES)) == len(SCENES)


def test_things_are_inside_the_picture_and_overlap_little():
    for scene in SCENES:
        assert MIN_THINGS <= len(scene.things) <= MAX_THINGS
        for thing in scene.things:
            low, high = SIZES[thing.size]
            assert low <= thing.radius <= high
            assert max(abs(thing.x - SIDE / 2), abs(thing.y - SIDE / 2)) + thing.radius < SIDE / 2
        for a, b in itertools.combinations(scene.things, 2):
            assert math.dist((a.x, a.y), (b.x, b.y)) >= 0.9 * (a.radius + b.radius)


def test_every_kind_occurs_except_the_new_one():
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.color for thing in things} == set(COLORS)
    assert {thing.size for thing in things} == set(SIZES)
    assert NEW_KIND not in KINDS
    assert {thing.kind for thing in make_scene(Random(0), (NEW_KIND,)).things} == {NEW_KIND}
