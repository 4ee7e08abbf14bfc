"""Scenes are reproducible from a seed, and their things fit the picture."""

import itertools
import math
from random import Random

from vipllava_jax.demo.world import COLORS, FEWEST, KINDS, MOST, NEW_KIND, SIDE, SIZES, make_scene

SCENES = [make_scene(Random(seed)) for seed in range(300)]


def test_a_seed_is_a_scene():
    assert SCENES[:5] == [make_scene(Random(seed)) for seed in range(5)]
    assert len(set(SCENES)) == len(SCENES)


def test_things_lie_inside_and_overlap_little():
    for scene in SCENES:
        assert FEWEST <= len(scene.things) <= MOST
        for thing in scene.things:
            low, high = SIZES[thing.size]
            assert low <= thing.radius <= high
            assert max(abs(thing.x - SIDE / 2), abs(thing.y - SIDE / 2)) + thing.radius < SIDE / 2
        for a, b in itertools.combinations(scene.things, 2):
            assert math.dist((a.x, a.y), (b.x, b.y)) >= 0.9 * (a.radius + b.radius)


def test_everything_occurs_but_what_is_left_to_teach():
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.color for thing in things} == set(COLORS)
    assert {thing.size for thing in things} == set(SIZES)
    assert NEW_KIND not in KINDS
    assert {thing.kind for thing in make_scene(Random(0), (NEW_KIND,)).things} == {NEW_KIND}
