"""Marks are on different things, have different phrases, and lie inside the picture."""

import itertools
from random import Random

import numpy as np
import pytest

from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.marking import (
    CONFUSABLE_COLORS,
    MASK_ALPHA,
    SHAPES,
    SIMILAR_SHAPES,
    draw_marks,
    make_mark,
    make_marks,
)
from vipllava_jax.demo.world import COLORS, SIDE, make_scene
from vipllava_jax.inputs.marks import COLORS as MARK_COLORS


def test_two_marks_can_be_distinguished():
    for seed in range(200):
        rng = Random(seed)
        marks = make_marks(rng, make_scene(rng), 2)
        assert len({marked.thing for marked in marks}) == len(marks) == 2
        assert len({marked.mark.phrase for marked in marks}) == 2


@pytest.mark.parametrize('shape', SHAPES)
def test_every_mark_can_be_drawn_on_every_thing(shape):
    rng = Random(shape)
    for _ in range(10):
        scene = make_scene(rng)
        for thing in scene.things:
            region = make_mark(rng, thing, shape, 'red').region((SIDE, SIDE))
            x1, y1, x2, y2 = region.box
            assert x1 - 1 <= thing.x <= x2 + 1
            assert y1 - 1 <= thing.y <= y2 + 1


def test_the_same_seed_varies_marks_in_the_same_way():
    rng = Random(0)
    scene = make_scene(rng)
    bare, marks = picture(scene), make_marks(rng, scene, 2)
    drawn = [draw_marks(bare, marks, seed).tobytes() for seed in (None, 1, 1, 2)]
    assert drawn[1] == drawn[2]
    assert len(set(drawn)) == 3


def test_marks_of_similar_shapes_have_distinct_colours():
    for seed in range(400):
        rng = Random(seed)
        (one, _), (other, _) = make_marks(rng, make_scene(rng), 2)
        if {one.shape, other.shape} <= SIMILAR_SHAPES or one.shape == other.shape:
            assert one.color != other.color
            assert not any({one.color, other.color} <= alike for alike in CONFUSABLE_COLORS)


def test_pairs_of_one_shape_are_as_frequent_in_training_as_held_out():
    often = {}
    for split in ('training', 'held out'):
        groups = [make_marks(rng, make_scene(rng), 2, split) for rng in map(Random, range(600))]
        pairs = [[mark.shape for mark, _ in marks] for marks in groups if len(marks) == 2]
        often[split] = sum(one == other for one, other in pairs) / len(pairs)
    assert often['training'] == pytest.approx(often['held out'], abs=0.08)


@pytest.mark.parametrize('color', MARK_COLORS)
def test_colours_can_be_distinguished_under_a_mask(color):
    """With every alpha in the range of masks, which may differ between two marks."""
    shares = np.linspace(*MASK_ALPHA, 33)[:, None] / 255
    over = {
        name: (1 - shares) * base + shares * np.array(MARK_COLORS[color])
        for name, base in ((name, np.array(base)) for name, base in COLORS.items())
    }
    for a, b in itertools.combinations(over.values(), 2):
        assert np.abs(a[:, None] - b[None]).max(axis=2).min() > 15


def test_the_alpha_of_masks_is_in_range():
    rng = Random(0)
    alphas = {make_mark(rng, make_scene(rng).things[0], 'mask', 'red').alpha for _ in range(50)}
    assert MASK_ALPHA[0] <= min(alphas) < max(alphas) <= MASK_ALPHA[1]
