"""Every prompt has a program, and what is prefilled fits the rows that it is put into."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SMALL
from vipllava_jax.config import VIP_LLAVA_7B
from vipllava_jax.engine.shapes import make_shapes


def config(context):
    return dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, context=context))


@st.composite
def shapes(draw):
    context = draw(st.sampled_from([256, 512, 1000, 4096]))
    slots = draw(st.integers(16, context))
    wide = draw(st.dictionaries(st.integers(16, context + 9), st.integers(0, 5), max_size=3))
    rows, parts = draw(st.integers(1, 100)), draw(st.sampled_from([1, 1, 2, 4]))
    return make_shapes(config(context), rows, slots, wide, parts, draw(st.booleans()), draw(st.booleans()))


def test_the_shapes_of_the_7b():
    found = make_shapes(VIP_LLAVA_7B, 80, 1024, {2048: 8, 4096: 4})
    assert found.lanes == (1, 8, 80)
    assert found.levels == ((80, 1024), (8, 2048), (4, 4096))
    assert (found.rows, found.largest, found.prefix_slots) == (92, 4096, (640, 1024))
    assert found.sizes == [(1, 1024), (8, 1024), (80, 1024), (8, 2048), (4, 4096)]
    assert [*found.groups()] == [(0,), (1,), (2,), (3,), (4,), (2, 3), (2, 3, 4)]
    assert found.length_for(640) == 640
    assert found.cache_slots(641) == 1024
    assert [B for B, length in found.prefills() if length == 640] == [8, 4, 1]
    assert [B for B, length in found.prefills() if length == 1536] == [1]


@pytest.mark.parametrize(
    ('wide', 'few', 'lender'),
    [
        ({2048: 8, 4096: 2}, (1, 16), 3),
        ({2048: 20, 4096: 2}, (1, 8, 40), 4),
        ({4096: 2}, (1, 8), 3),
        ({2048: 3, 4096: 2}, (1, 8), 4),
        ({1500: 8}, (1, 8), None),
        ({2048: 60}, (1, 8), None),
    ],
)
def test_few_answers_use_the_cache_of_longer_rows(wide, few, lender):
    found = make_shapes(VIP_LLAVA_7B, 80, 1024, wide, divides=True)
    assert found.lanes == (*few, 80)
    borrower = len(few) - 1
    assert found.cache_of(borrower) == (borrower if lender is None else lender)


def test_answers_that_share_a_prefix_have_twice_the_rows():
    found = make_shapes(VIP_LLAVA_7B, 80, 1024, {2048: 8}, divides=True)
    assert (found.halved_lane, found.sizes[-1], found.cache_of(4)) == (4, (160, 512), 2)
    assert [group for group in found.groups() if found.shares(group)] == [(2,), (4,)]
    assert make_shapes(VIP_LLAVA_7B, 80, 1024, {}, parts=2, divides=True).halved_lane is None
    assert make_shapes(VIP_LLAVA_7B, 80, 1023, {}, divides=True).halved_lane is None


@given(shapes())
def test_lanes_that_use_one_cache_have_its_size(found):
    for lane, (rows, slots) in enumerate(found.sizes):
        rows_of_cache, slots_of_cache = found.sizes[found.cache_of(lane)]
        assert rows * slots == rows_of_cache * slots_of_cache


def test_lanes_of_few_rows_are_for_one_device():
    assert make_shapes(VIP_LLAVA_7B, 5, 1024, {}).lanes == (1, 5)
    assert make_shapes(VIP_LLAVA_7B, 1, 1024, {}).lanes == (1,)
    divided = make_shapes(VIP_LLAVA_7B, 79, 1024, {4096: 1}, parts=4)
    assert (divided.lanes, divided.wide, divided.together) == ((80,), ((4, 4096),), (8, 4))


@pytest.mark.parametrize(('slots', 'largest'), [(5000, 4096), (1024, 1024)])
def test_without_wider_rows_the_slots_limit_a_prompt(slots, largest):
    found = make_shapes(VIP_LLAVA_7B, 8, slots, {})
    assert found.largest == max(found.lengths) == largest


@given(shapes())
def test_levels_are_ordered_and_rows_are_divided(found):
    slots = [slots for _, slots in found.levels]
    assert slots == sorted({*slots})
    assert found.largest <= found.context
    assert [*found.lanes] == sorted({*found.lanes})


@given(shapes(), st.data())
def test_every_prompt_has_a_level_and_a_length_that_fits_its_rows(found, data):
    tokens = data.draw(st.integers(1, found.largest))
    new = data.draw(st.integers(0, found.largest - tokens))
    level = found.level_for(tokens, new)
    assert found.levels[level][1] >= tokens + new
    length = found.length_for(tokens)
    assert length >= tokens
    assert found.cache_slots(length) <= found.levels[level][1]
    assert (found.together[-1], length) in {*found.prefills()}


@given(shapes())
def test_what_is_prefilled_together_fits_rows_of_level_0(found):
    for B, length in found.prefills():
        assert found.together[-1] == B or length <= found.slots
    assert all(slots >= length for length in found.rest_lengths for slots in found.prefix_slots[-1:])
    assert max(found.prefix_slots) == found.slots
    for lane, (_, slots) in enumerate(found.sizes):
        assert max(size for _, size in found.sources(lane)) <= slots
