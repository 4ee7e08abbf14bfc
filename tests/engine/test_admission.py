"""Of waiting questions, those are prefilled next, and together, whose answers have rows and programs."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SMALL
from vipllava_jax.engine import admission
from vipllava_jax.engine.admission import Admission, Admissions
from vipllava_jax.engine.programs import PICTURES
from vipllava_jax.engine.shapes import make_shapes

CFG = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, context=1024))
SHAPES = make_shapes(CFG, 16, 256, {1024: 2})
FREE = [16, 2]


class Store:
    """A store that only knows keys."""

    capacity = 1

    def __init__(self, *keys):
        self.keys = keys

    def __contains__(self, key):
        return key in self.keys


def item(tokens=100, new=10, key=None, prefix=0, samples=1):
    """A question that waits; with a key, it has a picture, after which `tokens - prefix` follow."""
    pictures = np.zeros((int(key is not None), 1, 1, 3), np.uint8)
    ids = np.zeros(tokens, np.int32)
    return SimpleNamespace(
        ids=ids, left=new, key=key, prefix=prefix, samples=range(samples), pictures=pictures
    )


def choose(waiting, *stored, free=FREE, shared=None, sharing=None, **options):
    sharing = free[0] if sharing is None else sharing
    return Admissions(SHAPES, Store(*stored), **options).choose(waiting, free, shared, sharing)


def test_prompts_of_one_length_are_prefilled_together():
    waiting = [item(100), item(110), item(200), *[item(120)] * 3, item(300)]
    assert choose(waiting) == Admission([*waiting[:2], *waiting[3:5]], 4, 0)
    sizes = [choose([item(100) for _ in range(count)]) for count in (1, 2, 3, 5, 6, 9)]
    assert [(len(chosen.items), chosen.B) for chosen in sizes] == [
        *[(1, 1), (1, 1), (3, 4)],  # two prompts are quicker one by one
        *[(4, 4), (6, 8), (8, 8)],
    ]


def test_answers_have_rows():
    assert choose([item()], free=[0, 0]) is None
    assert len(choose([item(samples=3)] * 8, free=[7, 0]).items) == 1
    assert choose([item(samples=3)], free=[2, 2]) is None


def test_a_question_goes_to_the_first_level_with_room_and_a_free_row():
    assert choose([item(200, 20)]).level == 0
    assert choose([item(200, 100)]).level == 1
    assert choose([item(200, 20)], free=[0, 1]).level == 1
    assert choose([item(200, 100)], free=[9, 0]) is None


def test_a_question_without_a_row_lets_others_pass_that_need_no_such_row():
    long, short = item(200, 100), item(100)
    assert choose([long, short], free=[1, 0]).items == [short]
    several = item(100, samples=4)
    assert choose([several, short], free=[3, 0]) is None  # it would never find four


def test_a_question_with_a_stored_beginning_follows_it():
    stored = item(120, key=b'a', prefix=90)
    assert choose([stored], b'a') == Admission([stored], 1, 0, key=b'a')
    assert choose([stored]).key is None
    assert choose([stored], b'a', alone=True) == Admission([stored], 1, 0)
    at_end = item(90, key=b'a', prefix=90)
    assert choose([at_end], b'a').key is None  # nothing follows


def test_of_several_new_questions_about_a_picture_one_is_first():
    waiting = [item(120, key=b'a', prefix=90) for _ in range(5)]
    assert choose(waiting) == Admission(waiting[:1], 1, 0, keep=True)
    assert len(choose([item(120, key=bytes([n]), prefix=90) for n in range(5)]).items) > 1


def test_rows_share_a_prefix_when_this_saves_enough(monkeypatch):
    waiting = [item(120, key=b'a', prefix=90) for _ in range(5)]
    assert not choose(waiting, b'a').shared
    monkeypatch.setattr(admission, 'ENOUGH_SAVED', 400)
    assert choose(waiting, b'a') == Admission(waiting, SHAPES.rest_together, 0, key=b'a', shared=True)
    assert choose(waiting[:1], b'a', shared=b'a').shared  # as rows do already
    assert not choose(waiting, b'a', shared=b'b').shared
    assert not choose(waiting, b'a', free=[0, 2]).shared


def test_questions_wait_for_rows_that_share_their_prefix_unless_an_older_one_waits():
    same, other = [item(120, key=b'a', prefix=90) for _ in range(5)], item(100)
    assert choose(same, b'a', shared=b'a', free=[0, 2]) is None
    assert choose(same, b'a', shared=b'a', free=[0, 2], sharing=3).items == same[:3]
    assert choose([*same, other], b'a', shared=b'a', free=[0, 1]) == Admission([other], 1, 1)
    assert choose([other, *same], b'a', shared=b'a', free=[0, 0], sharing=9) is None
    several = item(120, key=b'a', prefix=90, samples=4)
    assert choose([several, *same], b'a', shared=b'a', free=[0, 0], sharing=3) is None


def test_a_whole_prompt_is_prefilled_if_its_prefix_and_rest_exceed_a_short_row():
    """What follows a prefix is joined with it in as many slots as rows of level 0 have."""
    assert choose([item(300, key=b'a', prefix=200)], b'a').key is None


@st.composite
def worlds(draw):
    slots = draw(st.sampled_from([128, 256, 300, 640]))
    wide = draw(st.sampled_from([{}, {512: 2}, {1024: 3}, {700: 2, 1024: 1}]))
    shapes = make_shapes(CFG, draw(st.integers(1, 20)), slots, wide, 1, draw(st.booleans()))
    waiting, prefixes = [], {bytes([n]): draw(st.integers(5, shapes.largest - 2)) for n in range(4)}
    for _ in range(draw(st.integers(1, 20))):
        key = draw(st.sampled_from([None, None, *prefixes]))
        prefix = prefixes.get(key, 0)
        tokens = draw(st.integers(prefix + 1, min(shapes.largest - 1, prefix + 300)))
        new = draw(st.integers(1, shapes.largest - tokens))
        rows = max(rows for rows, size in shapes.levels if size >= tokens + new)
        waiting.append(item(tokens, new, key, prefix, draw(st.integers(1, min(3, rows)))))
    # Prefixes are stored if they fit a row of level 0.
    stored = draw(st.sets(st.sampled_from([key for key in prefixes if prefixes[key] <= slots] or [b'x'])))
    free = [draw(st.integers(0, rows)) for rows, _ in shapes.levels]
    return shapes, waiting, stored, free, draw(st.sampled_from([None, None, *stored]))


@settings(max_examples=400, deadline=None)
@given(worlds(), st.booleans())
def test_what_is_chosen_has_rows_and_compiled_programs(world, alone):
    shapes, waiting, stored, free, shared = world
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, 'ENOUGH_SAVED', 200)
        chosen = Admissions(shapes, Store(*stored), alone).choose(waiting, free, shared, free[0])
    if chosen is None:  # questions with several answers may keep rows from others
        head = waiting[0]
        level = level_of(shapes, head)
        waits = not level and shared and head.key == shared  # for a row of level 0, even if others are free
        assert all(rows < len(head.samples) for rows in (free[:1] if waits else free[level:]))
        return
    slots, rests = shapes.levels[chosen.level][1], [len(x.ids) - x.prefix for x in chosen.items]
    longest = max(len(item.ids) for item in chosen.items)
    assert 1 <= len(chosen.items) <= chosen.B
    assert chosen.answers <= free[chosen.level]
    assert len(chosen.items) == 1 or sum(len(x.pictures) for x in chosen.items) <= PICTURES or chosen.key
    if chosen.shared:
        rest = next(length for length in shapes.rest_lengths if length >= max(rests))
        assert (chosen.level, chosen.B) == (0, shapes.rest_together)
        assert (chosen.B, rest) in shapes.sources(shapes.lane_of(0))
    elif chosen.key:
        assert shapes.together[-1] == chosen.B
        assert max(rests) <= shapes.rest_lengths[-1]
        assert longest <= shapes.slots  # of the caches into which both are joined
        assert (chosen.B, shapes.slots) in shapes.sources(shapes.lane_of(chosen.level))
    else:
        length = shapes.length_for(longest)
        assert longest < slots
        assert (chosen.B, length) in {*shapes.prefills()}
        assert (chosen.B, shapes.cache_slots(length)) in shapes.sources(shapes.lane_of(chosen.level))


def level_of(shapes, item):
    return shapes.level_for(len(item.ids), min(item.left, admission.EXPECTED_NEW))
