import dataclasses

import pytest
from openai.types import Model

from vipllava_jax.protocol.errors import ApiError
from vipllava_jax.protocol.models import model_entry, model_list


def test_there_is_one_model(served):
    served = dataclasses.replace(served, name='my org/vip', max_model_len=500)
    entry = model_entry(served, 'my org/vip')
    assert entry == {
        'id': 'my org/vip',
        'object': 'model',
        'created': 7,
        'owned_by': 'vipllava-jax',
        'max_model_len': 500,
    }
    Model.model_validate(entry, strict=True)
    assert model_list(served) == {'object': 'list', 'data': [entry]}


def test_other_models_are_not_found(served):
    with pytest.raises(ApiError, match=r"there is no model 'x\\x1b\[': ask for 'vip'") as caught:
        model_entry(served, 'x\x1b[')
    assert (caught.value.status, caught.value.code) == (404, 'model_not_found')
    assert caught.value.body()['error']['type'] == 'not_found_error'
