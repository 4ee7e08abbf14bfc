"""Costs of the 7B in bfloat16, compared with figures computed by hand."""

import dataclasses

import jax
import pytest

from vipllava_jax.ceilings import Ceilings
from vipllava_jax.config import VIP_LLAVA_7B, VIP_LLAVA_13B
from vipllava_jax.model.cost import Costs, Work
from vipllava_jax.model.params import abstract

COSTS = Costs(VIP_LLAVA_7B)
H200 = Ceilings(4.3e12, 790e12, 'bfloat16')


def test_a_decode_step_reads_every_weight_of_the_decoder_and_the_cache():
    assert COSTS.cached_token == 2**19
    assert COSTS.decode(1, 0).bytes == pytest.approx(13.21e9, rel=1e-3)
    assert COSTS.decode(32, 704).bytes - COSTS.decode(32, 703).bytes == 32 * 2**19
    assert COSTS.decode(8, 704).flop == pytest.approx(8 * 13.6e9, rel=0.02)


@pytest.mark.parametrize(('rows', 'ms'), [(1, 3.16), (8, 3.76), (32, 5.82), (128, 14.1)])
def test_minimum_times_of_decode(rows, ms):
    work = COSTS.decode(rows, 704)
    assert H200.floor(work) * 1e3 == pytest.approx(ms, rel=5e-3)
    assert H200.bound(work) == 'bandwidth'


@pytest.mark.parametrize(('rows', 'ms'), [(1, 10.6), (8, 85), (32, 340)])
def test_minimum_times_of_prefill(rows, ms):
    work = COSTS.prefill(rows, 640)
    assert work.flop == pytest.approx(rows * 8.4e12, rel=1e-2)
    assert H200.floor(work) * 1e3 == pytest.approx(ms, rel=1e-2)
    assert H200.bound(work) == 'matmul'


def test_minimum_time_of_vision():
    assert COSTS.vision(1).flop == pytest.approx(0.41e12, rel=1e-2)
    assert H200.floor(COSTS.vision(1)) * 1e3 == pytest.approx(0.52, rel=1e-2)


def test_layers_after_the_deepest_tap_cost_nothing():
    shallow = dataclasses.replace(VIP_LLAVA_7B, feature_layers=(6, 6, 6, 6, 6))
    a, b = Costs(shallow).vision(1), COSTS.vision(1)
    assert b.flop - a.flop == pytest.approx((23 - 6) * 15.9e9, rel=1e-2)
    assert b.bytes - a.bytes == (23 - 6) * 12 * 1024**2 * 2


@pytest.mark.parametrize('cfg', [VIP_LLAVA_7B, VIP_LLAVA_13B])
def test_the_number_of_weights_equals_that_of_the_params(cfg):
    matrices = {
        jax.tree_util.keystr(path): leaf.size
        for path, leaf in jax.tree.leaves_with_path(abstract(cfg)['llama'])
        if leaf.ndim > 1 and 'embed' not in jax.tree_util.keystr(path)
    }
    assert Costs(cfg, weight=1).decode(0, 0).bytes == sum(matrices.values())


def test_fewer_bytes_per_weight_reduce_the_bytes_moved():
    small = Costs(VIP_LLAVA_7B, weight=1)
    assert small.decode(1, 0).bytes == pytest.approx(6.61e9, rel=1e-3)
    assert small.vision(1) == COSTS.vision(1)


def test_the_minimum_time_is_the_larger_of_memory_and_compute_time():
    rates = Ceilings(10, 100, 'float32')
    assert (rates.floor(Work(20, 100)), rates.bound(Work(20, 100))) == (2, 'bandwidth')
    assert (rates.floor(Work(1, 300)), rates.bound(Work(1, 300))) == (3, 'matmul')


def test_a_training_step_costs_three_passes_for_trainable_weights_and_two_for_frozen_ones():
    forward = COSTS.prefill(1, 1024).flop
    head = 2 * VIP_LLAVA_7B.text.width * VIP_LLAVA_7B.text.vocab
    with_loss = forward + 1023 * head  # the loss needs logits of every token
    assert COSTS.training([1024], 0, {'llama', 'projector'}) == pytest.approx(3 * with_loss)
    attention = COSTS.training([1024], 0, {'llama'}) - 3 * 2 * 1024 * (COSTS.prefill(1, 1).bytes - 2**19) / 2
    assert COSTS.training([1024], 0, {'projector'}) == pytest.approx(2 * with_loss + attention / 3)
    assert COSTS.training([1024], 0, {'lora'}, adapters=10**8) - COSTS.training([1024], 0, {'lora'}) == (
        6e8 * 1024
    )
    assert COSTS.training([512, 512], 0, {'llama'}) < COSTS.training([1024], 0, {'llama'})


@pytest.mark.parametrize(('trains', 'times'), [({'llama'}, 1), ({'vision', 'projector'}, 3)])
def test_an_image_costs_only_a_forward_pass_unless_the_tower_trains(trains, times):
    more = COSTS.training([1024], 4, trains) - COSTS.training([1024], 0, trains)
    assert more == pytest.approx(times * COSTS.vision(4).flop)
