"""The table: every leaf of a model has a tensor, and the names of every layout are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import TINY
from tests.convert.layouts import LLAVA, PREFIXES, TIED, renamed
from vipllava_jax.arrays import flat
from vipllava_jax.config import VIP_LLAVA_7B, VIP_LLAVA_13B
from vipllava_jax.convert.table import Leaf, hub_name, leaves, rearrange_axes, reverse_layout
from vipllava_jax.model.params import abstract


@given(st.sampled_from(sorted({leaf.layout for leaf in leaves(TINY)})), st.data())
def test_reversed_layouts_restore_the_array(layout, data):
    sizes = {letter: data.draw(st.integers(1, 4), letter) for letter in layout if letter.isalpha()}
    shape = Leaf('', '', layout, tuple(sizes.items())).shapes[0]
    x = np.arange(math.prod(shape)).reshape(shape)
    there = rearrange_axes(x, layout, sizes)
    np.testing.assert_array_equal(rearrange_axes(there, reverse_layout(layout), sizes), x)


def test_a_patch_is_read_row_by_row_with_its_colours_last():
    x = np.arange(5 * 3 * 2 * 2).reshape(5, 3, 2, 2)
    y = rearrange_axes(x, 'Dchw->(hwc)D', dict(D=5, c=3, h=2, w=2))
    assert y[1 * 2 * 3 + 0 * 3 + 2, 4] == x[4, 2, 1, 0]


@pytest.mark.parametrize('cfg', [TINY, LLAVA, TIED, VIP_LLAVA_7B, VIP_LLAVA_13B])
def test_leaves_equal_the_params_of_the_model(cfg):
    assert {leaf.path: leaf.shapes[1] for leaf in leaves(cfg)} == {p: x.shape for p, x in flat(abstract(cfg))}


@pytest.mark.parametrize(('cfg', 'tensors'), [(VIP_LLAVA_7B, 688), (VIP_LLAVA_13B, 760)])
def test_the_number_of_tensors_of_the_published_models(cfg, tensors):
    assert len(list(leaves(cfg))) == tensors


def test_the_number_of_weights_of_the_7b():
    assert sum(leaf.size for leaf in leaves(VIP_LLAVA_7B)) == 7_080_214_528


@pytest.mark.parametrize('layout', PREFIXES)
@pytest.mark.parametrize('cfg', [TINY, LLAVA])
def test_every_name_has_one_name_on_the_hub(layout, cfg):
    for leaf in leaves(cfg):
        assert hub_name(renamed(leaf, layout, cfg.projector_norm)) == leaf.name
        assert hub_name(leaf.name) == leaf.name
