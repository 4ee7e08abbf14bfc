"""Splitting params into trainable and frozen ones, and joining them."""

import jax
import numpy as np
import pytest

from vipllava_jax.arrays import flat
from vipllava_jax.model.quantized import quantize
from vipllava_jax.model.weights import LoRA
from vipllava_jax.training.parts import adapted_weight, join, split


def adapted(params):
    q = params['llama']['layers_0']['q']['w']
    layer = {
        **params['llama']['layers_0'],
        'q': {'w': LoRA(q, np.ones((48, 2)), np.zeros((2, 6, 8)), 0.5)},
    }
    return {**params, 'llama': {**params['llama'], 'layers_0': layer}}


@pytest.mark.parametrize(
    ('trains', 'tops'),
    [
        ({'projector'}, {'projector'}),
        ({'vision', 'projector'}, {'clip', 'projector'}),
        (['projector', 'llama'], {'projector', 'llama'}),
        ({'vision', 'projector', 'llama'}, {'clip', 'projector', 'llama'}),
    ],
)
def test_join_is_the_inverse_of_split(params, trains, tops):
    trainable, frozen = split(params, trains)
    assert set(trainable) == tops
    assert set(frozen) == set(params) - tops
    joined = join(trainable, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, joined, params)


def test_of_an_adapted_weight_only_the_pair_trains(params):
    params_with_lora = adapted(params)
    trainable, frozen = split(params_with_lora, {'lora', 'projector'})
    assert set(dict(flat(trainable['llama']))) == {'layers_0/q/w/a', 'layers_0/q/w/b'}
    assert trainable['projector'] == params['projector']
    left = frozen['llama']['layers_0']['q']['w']
    assert (left.base is params['llama']['layers_0']['q']['w'], left.a, left.b) == (True, None, None)
    joined = join(jax.tree.map(lambda w: w + 1, trainable), frozen)
    pair = joined['llama']['layers_0']['q']['w']
    assert (pair.a == 2).all()
    assert (pair.b == 1).all()
    assert pair.scale == 0.5
    assert jax.tree.structure(joined) == jax.tree.structure(params_with_lora)


def test_an_adapter_that_does_not_train_is_not_split(params):
    _, frozen = split(adapted(params), {'projector'})
    assert (frozen['llama']['layers_0']['q']['w'].a == 1).all()


def test_weights_that_cannot_train_are_refused(params):
    int8 = quantize(params['llama']['layers_0']['q']['w'], 1)
    layer = {**params['llama']['layers_0'], 'q': {'w': int8}}
    quantized = {**params, 'llama': {**params['llama'], 'layers_0': layer}}
    for weights, trains, message in [
        (params, {'clip'}, r"\['clip'\], but must be some of vision, projector, llama, lora"),
        (params, set(), 'must be some of'),
        (params, {'lora'}, 'have none: add one first'),
        (adapted(params), {'llama', 'lora'}, 'llama/layers_0/q/w: its part trains, but it has an adapter'),
        (adapted(params), {'llama'}, 'merge the adapter first'),
        (quantized, {'llama'}, 'llama/layers_0/q/w: int8 weights do not train'),
    ]:
        with pytest.raises(ValueError, match=message):
            split(weights, trains)
    split(quantized, {'projector'})


def test_leaves_of_pairs_name_their_weight(params):
    trainable, _ = split(adapted(params), {'lora', 'projector'})
    weights = {path: adapted_weight(path) for path, _ in flat(trainable)}
    q = 'llama/layers_0/q/w'
    assert (weights.pop(f'{q}/a'), weights.pop(f'{q}/b')) == (q, q)
    assert set(weights.values()) == {None}  # also for biases, which are named b too
