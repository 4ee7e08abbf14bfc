"""The options for loading weights are checked when they are created."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from vipllava_jax.messages import CheckpointError
from vipllava_jax.weight_options import WeightOptions


@pytest.mark.parametrize('dtype', ['bfloat16', jnp.bfloat16, np.dtype('bfloat16')])
def test_a_dtype_is_a_name_or_a_type(dtype):
    assert WeightOptions(dtype=dtype) == WeightOptions(dtype='bfloat16')
    assert WeightOptions(dtype=dtype).dtype == np.dtype('bfloat16')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dtype': 'int8'}, 'int8: not a dtype of weights; use one of float32, float16, bfloat16'),
        ({'dtype': 'float64'}, 'float64: not a dtype of weights'),
        ({'dtype': 'x'}, 'x: not a dtype of weights'),
        ({'quantize': 'int3'}, 'int3: weights can be quantized to int8, int4'),
    ],
)
def test_invalid_options_are_errors(options, message):
    with pytest.raises(CheckpointError, match=f'^{message}'):
        WeightOptions(**options)


def test_weights_are_read_as_stored_if_they_change_afterwards():
    assert WeightOptions(dtype='float16').dtype_to_read == np.dtype('float16')
    assert WeightOptions(dtype='float16', quantize='int8').dtype_to_read is None
    assert WeightOptions(dtype='float16', adapter='folder').dtype_to_read is None


def test_options_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WeightOptions().dtype = 'float32'  # type: ignore[misc]
