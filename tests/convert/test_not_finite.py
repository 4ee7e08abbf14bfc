"""Weights with NaN or infinity are named by a conversion, and never equal in a comparison."""

import numpy as np
import pytest

from vipllava_jax import checkpoint
from vipllava_jax.convert.to_flax import convert
from vipllava_jax.convert.to_torch import export
from vipllava_jax.convert.verify import verify

GATE = 'language_model.model.layers.1.mlp.gate_proj.weight'


def spoilt(folder, target, value=np.nan):
    """A converted folder in which two values are not finite."""
    params, cfg = checkpoint.restore(folder)
    for leaf in (params['llama']['layers_1']['gate'], params['projector']['linear_1']):
        leaf['w'] = leaf['w'].at[3, 4].set(value)
    assert checkpoint.save(target, params, cfg, files_from=folder) == (
        'llama/layers_1/gate/w',
        'projector/linear_1/w',
    )
    return target


@pytest.fixture(scope='module')
def ours(folder, tmp_path_factory):
    return spoilt(folder, tmp_path_factory.mktemp('spoilt') / 'ours')


@pytest.fixture(scope='module')
def theirs(ours, tmp_path_factory):
    target = tmp_path_factory.mktemp('spoilt') / 'theirs'
    report = export(ours, target)
    assert report.warnings == (
        f'{GATE} holds NaN or infinity',
        'multi_modal_projector.linear_1.weight holds NaN or infinity',
    )
    return target


@pytest.mark.slow
def test_conversions_name_tensors_that_are_not_finite(theirs, tmp_path):
    assert convert(theirs, tmp_path / 'a').warnings == (
        f'{GATE} (llama/layers_1/gate/w) holds NaN or infinity',
        'multi_modal_projector.linear_1.weight (projector/linear_1/w) holds NaN or infinity',
    )
    warnings = convert(theirs, tmp_path / 'b', quantize='int8').warnings
    assert f'{GATE} (llama/layers_1/gate/w) holds NaN or infinity' in warnings


def test_overflow_to_float16_is_reported(folder, tmp_path):
    params, cfg = checkpoint.restore(folder)
    norm = params['llama']['norm']
    norm['w'] = norm['w'].at[3].set(7e4)
    assert checkpoint.save(tmp_path / 'ours', params, cfg) == ()
    reason = 'holds NaN or infinity; numbers above 65504 are infinite in float16'
    name = 'language_model.model.norm.weight'
    assert export(tmp_path / 'ours', tmp_path / 'half', dtype='float16').warnings == (f'{name} {reason}',)
    assert export(tmp_path / 'ours', tmp_path / 'theirs').warnings == ()
    warnings = convert(tmp_path / 'theirs', tmp_path / 'back', dtype='float16').warnings
    assert warnings == (f'{name} (llama/norm/w) {reason}',)


def test_not_finite_weights_never_compare_equal(ours, theirs):
    found = verify(theirs, ours)
    assert found.not_finite == ('llama/layers_1/gate/w', 'projector/linear_1/w', 'logits')
    assert not found.equal
    assert set(found.groups.values()) == {0}


def test_not_finite_values_on_one_side_are_found(ours, source, theirs, folder):
    for pair in ((source, ours), (theirs, folder)):
        found = verify(*pair)
        assert found.not_finite == ('llama/layers_1/gate/w', 'projector/linear_1/w', 'logits')
        assert found.groups['llama mlp'] == np.inf
        assert not found.equal
