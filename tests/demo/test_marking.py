"""Marks on things: on different ones, told apart by their phrases, inside the picture."""

from random import Random

import pytest

from vipllava_jax.demo.drawing import picture
from vipllava_jax.demo.marking import SHAPES, draw_marks, make_mark, make_marks
from vipllava_jax.demo.world import SIDE, make_scene


def test_two_marks_are_told_apart():
    for seed in range(200):
        rng = Random(seed)
        marks = make_marks(rng, make_scene(rng), 2)
        assert len({marked.thing for marked in marks}) == len(marks) == 2
        assert len({marked.mark.phrase for marked in marks}) == 2


@pytest.mark.parametrize('shape', SHAPES)
def test_every_mark_can_be_drawn_on_everything(shape):
    rng = Random(shape)
    for _ in range(10):
        scene = make_scene(rng)
        for thing in scene.things:
            region = make_mark(rng, thing, shape, 'red').region((SIDE, SIDE))
            x1, y1, x2, y2 = region.box
            assert x1 - 1 <= thing.x <= x2 + 1
            assert y1 - 1 <= thing.y <= y2 + 1


def test_a_seed_varies_the_marks_the_same_way():
    rng = Random(0)
    scene = make_scene(rng)
    bare, marks = picture(scene), make_marks(rng, scene, 2)
    drawn = [draw_marks(bare, marks, seed).tobytes() for seed in (None, 1, 1, 2)]
    assert drawn[1] == drawn[2]
    assert len(set(drawn)) == 3
