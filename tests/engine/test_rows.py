"""Rows are occupied, moved and released, and the lane in use is the smallest with room."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import SMALL
from vipllava_jax.engine.device import Selection
from vipllava_jax.engine.pieces import TokenLogprobs
from vipllava_jax.engine.question import QuestionError
from vipllava_jax.engine.rows import Row, Rows
from vipllava_jax.engine.shapes import make_shapes

CFG = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, context=1024))


class Reply:
    """A reply that records what it is given, and ends after `end` ids."""

    def __init__(self, end=100):
        self.end, self.pushed, self.count = end, [], 0

    def push(self, sample, ids, now, logprobs, is_whole):
        self.pushed.append((sample, [*ids], logprobs))
        self.count += len(ids)
        return 'stop' if self.count >= self.end or is_whole else ''


class Digits:
    """A matcher of two digits."""

    def __init__(self):
        self.count = 0

    @property
    def is_complete(self):
        return self.count == 2

    def accept(self, id):
        self.count += id < 10
        return id < 10

    def allowed(self):
        return np.array([0x3FF], np.uint32)


def row(place, end=100, left=10):
    waiting = SimpleNamespace(reply=Reply(end), left=left, selection=Selection.GREEDY, ids=np.zeros(7))
    return Row(waiting, 0, place, position=7, left=left - 1, ends=frozenset({2}))


@pytest.fixture
def rows():
    """Lanes 0 to 2 of 1, 8 and 12 rows of 256 slots, lane 3 of 3 rows of 512, lane 4 of 1 of 1024."""
    return Rows(make_shapes(CFG, 12, 256, {512: 3, 1024: 1}))


def occupy(rows, lane, count=1):
    found = []
    for _ in range(count):
        found.append(row(rows.first_free(lane)))
        rows.occupy(found[-1])
    return found


def test_free_rows_are_counted_by_level(rows):
    rows.lane = 2
    assert rows.free() == [12, 3, 1]
    occupy(rows, 2, 5)
    occupy(rows, 3, 2)
    occupy(rows, 4)
    assert rows.free() == [7, 1, 0]
    assert [len(rows.at(level)) for level in range(3)] == [5, 2, 1]
    assert (len(rows), rows.top) == (8, 2)


def test_the_lane_is_the_smallest_with_room_and_the_largest_beside_other_levels(rows):
    assert [rows.lane_for(count) for count in (1, 2, 8, 9, 12, 40)] == [0, 1, 1, 2, 2, 2]
    (wide,) = occupy(rows, 3)
    assert rows.lane_for(1) == 2
    rows.release(wide)
    assert (rows.lane_for(1), rows.top) == (0, 0)


@pytest.fixture
def divided():
    """Lane 1 uses the cache of lane 3, and lane 5, of 24 rows of 128 slots, that of lane 2."""
    return Rows(make_shapes(CFG, 12, 256, {512: 4, 1024: 1}, divides=True))


def test_rows_that_share_a_prefix_leave_no_row_of_their_level_to_others(divided):
    divided.lane = 5
    assert (divided.is_halved, divided.free(), divided.free_sharing()) == (False, [12, 4, 1], 12)
    (first, *_) = occupy(divided, 5, 20)
    occupy(divided, 3)
    assert (divided.is_halved, divided.free(), divided.free_sharing()) == (True, [0, 3, 1], 4)
    divided.release(first)
    assert divided.free_sharing() == 5


@pytest.mark.parametrize(('lane', 'other'), [(1, 3), (3, 1), (2, 5), (5, 2)])
def test_two_lanes_that_use_one_cache_have_no_rows_at_once(divided, lane, other):
    (first,) = occupy(divided, lane)
    with pytest.raises(AssertionError):
        occupy(divided, other)
    divided.release(first)
    occupy(divided, other)


def test_a_released_place_is_used_again_and_is_not_released_for_its_former_row(rows):
    first, second, _ = occupy(rows, 2, 3)
    rows.release(second)
    assert rows.first_free(2) == (2, 1)
    (third,) = occupy(rows, 2)
    rows.release(second)  # for the second time
    assert rows.lanes[2][:3] == [first, third, rows.lanes[2][2]]
    with pytest.raises(AssertionError):
        rows.occupy(second)


def test_rows_of_a_group_are_numbered_over_its_lanes(rows):
    short, wide = occupy(rows, 2, 2), occupy(rows, 3, 2)
    rows.release(short[0])
    assert rows.in_group((2, 3)) == [(1, short[1]), (12, wide[0]), (13, wide[1])]
    active = rows.active((2, 3))
    assert [len(x) for x in active] == [12, 3]
    np.testing.assert_array_equal(np.flatnonzero(np.concatenate(active)), [1, 12, 13])
    assert set(rows) == {short[1], *wide}


def test_new_ids_are_passed_on_together_and_once():
    answer = row((0, 0), end=3)
    answer.flush(0.0)
    assert answer.reply.pushed == []
    answer.add(5, None)
    answer.add(6, TokenLogprobs(-0.5))
    answer.flush(1.0)
    assert (answer.ended, answer.ids) == (False, [5, 6])
    answer.add(2, None)
    answer.flush(2.0)
    assert answer.reply.pushed == [(0, [5, 6], [TokenLogprobs(-0.5)]), (0, [2], None)]
    assert answer.ended


def test_a_row_with_a_shared_prefix_has_the_slots_after_it():
    answer = row((0, 0), left=2)
    assert (answer.slot, dataclasses.replace(answer, prefix=5).slot) == (7, 2)
    answer.add(5, None)
    assert not answer.is_complete
    answer.add(6, None)
    assert answer.is_complete


def test_a_row_returns_to_its_last_allowed_token_once():
    answer = row((0, 0), left=5)
    answer.matcher = Digits()
    assert answer.accepts(3)
    answer.add(3, None)
    answer.position, answer.left = 9, 2  # two more tokens have been started
    assert not answer.accepts(50)
    answer.roll_back()
    assert (answer.position, answer.left, answer.allowed.tolist()) == (7, 4, [0x3FF])
    assert not answer.accepts(60)
    with pytest.raises(QuestionError, match='the settings exclude every token'):
        answer.roll_back()


def test_a_row_whose_format_is_complete_has_ended():
    answer = row((0, 0))
    answer.matcher = Digits()
    for id in (1, 2):
        assert not answer.is_complete
        assert answer.accepts(id)
        answer.add(id, None)
    assert answer.is_complete
    answer.flush(1.0)
    assert answer.ended
